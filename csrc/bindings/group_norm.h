// group_norm.h -- normext::group_norm and normext::instance_norm called through torch's dispatcher.
#pragma once
#include "channel_norm.h"

namespace normext {

Tensor group_norm(const Tensor& input, int64_t num_groups, const MaybeTensor& weight, const MaybeTensor& bias,
                  double eps, ActivationName activation, double slope);
Tensor instance_norm(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                     const MaybeTensor& weight, const MaybeTensor& bias, bool use_input_stats, double momentum,
                     double eps, ActivationName activation, double slope);

// Throw what these would throw. Tensors of torch.func's transforms may come as they are.
void check_group_norm(const Tensor& input, int64_t num_groups, const MaybeTensor& weight, const MaybeTensor& bias,
                      double eps, ActivationName activation, double slope);
void check_instance_norm(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                         const MaybeTensor& weight, const MaybeTensor& bias, bool use_input_stats, double momentum,
                         double eps, ActivationName activation, double slope);

// The kernels without an activation: no dispatcher, no derivative. Forward returns output, mean, rstd and variance.
std::tuple<Tensor, Tensor, Tensor, Tensor> group_norm_forward_kernel(const Tensor& input, int64_t num_groups,
                                                                     const MaybeTensor& weight, const MaybeTensor& bias,
                                                                     double eps);
Gradients group_norm_backward_kernel(const Tensor& grad_output, const Tensor& input, int64_t num_groups,
                                     const Tensor& mean, const Tensor& rstd, const MaybeTensor& weight, Mask mask);

}  // namespace normext
