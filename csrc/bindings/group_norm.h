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

}  // namespace normext
