// row_norm.h -- the row norms, normext::layer_norm and so on, called through torch's dispatcher.
#pragma once
#include "common.h"

namespace normext {

Tensor layer_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                  const MaybeTensor& bias, double eps, double weight_offset);
Tensor rms_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                std::optional<double> eps, double weight_offset);

// Both return output and sum.
std::tuple<Tensor, Tensor> add_layer_norm(const Tensor& input, const Tensor& residual,
                                          c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                                          const MaybeTensor& bias, double eps, double weight_offset);
std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& input, const Tensor& residual,
                                        c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                                        std::optional<double> eps, double weight_offset);

Tensor adaptive_layer_norm(const Tensor& input, const Tensor& scale, const Tensor& shift, double eps);
Tensor adaptive_rms_norm(const Tensor& input, const Tensor& scale, const MaybeTensor& shift, std::optional<double> eps);

// Throw what these would throw. Tensors of torch.func's transforms may come as they are.
void check_layer_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                      const MaybeTensor& bias, double eps, double weight_offset);
void check_rms_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                    std::optional<double> eps, double weight_offset);
void check_add_layer_norm(const Tensor& input, const Tensor& residual, c10::SymIntArrayRef normalized_shape,
                          const MaybeTensor& weight, const MaybeTensor& bias, double eps, double weight_offset);
void check_add_rms_norm(const Tensor& input, const Tensor& residual, c10::SymIntArrayRef normalized_shape,
                        const MaybeTensor& weight, std::optional<double> eps, double weight_offset);
void check_adaptive_layer_norm(const Tensor& input, const Tensor& scale, const Tensor& shift, double eps);
void check_adaptive_rms_norm(const Tensor& input, const Tensor& scale, const MaybeTensor& shift,
                             std::optional<double> eps);

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
