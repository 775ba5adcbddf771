// row_norm.h -- normext::layer_norm and normext::rms_norm called through torch's dispatcher.
#pragma once
#include "common.h"

namespace normext {

Tensor layer_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                  const MaybeTensor& bias, double eps, double weight_offset);
Tensor rms_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                std::optional<double> eps, double weight_offset);

// Throw what these would throw. Tensors of torch.func's transforms may come as they are.
void check_layer_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                      const MaybeTensor& bias, double eps, double weight_offset);
void check_rms_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                    std::optional<double> eps, double weight_offset);

// The kernels: no dispatcher, no derivative.
std::tuple<Tensor, Tensor, Tensor> layer_norm_forward_kernel(const Tensor& input, c10::SymIntArrayRef normalized_shape,
                                                             const MaybeTensor& weight, const MaybeTensor& bias,
                                                             double eps);
Gradients layer_norm_backward_kernel(const Tensor& grad_output, const Tensor& input,
                                     c10::SymIntArrayRef normalized_shape, const Tensor& mean, const Tensor& rstd,
                                     const MaybeTensor& weight, Mask mask);
std::tuple<Tensor, Tensor> rms_norm_forward_kernel(const Tensor& input, at::IntArrayRef normalized_shape,
                                                   const MaybeTensor& weight, std::optional<double> eps);
std::tuple<Tensor, Tensor> rms_norm_backward_kernel(const Tensor& grad_output, const Tensor& input,
                                                    at::IntArrayRef normalized_shape, const Tensor& rstd,
                                                    const MaybeTensor& weight, std::array<bool, 2> mask);

}  // namespace normext
