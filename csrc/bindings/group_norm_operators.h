// group_norm_operators.h -- what GroupNorm's kernels, their derivatives and its public operators share: checks, and the
// operators, called through torch's dispatcher.
#pragma once
#include "channel_norm.h"

namespace normext::group_norms {

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // output, mean, rstd, var

// Throw what torch throws. The latter two return the dtype of the parameters, and that of their gradients.
void check_groups(const Tensor& input, const c10::SymInt& num_groups);
at::ScalarType check(const Tensor& input, const c10::SymInt& num_groups, const Tensor& weight, const Tensor& bias);
at::ScalarType check_backward(const Tensor& grad_output, const Tensor& input, const c10::SymInt& num_groups,
                              const Tensor& mean, const Tensor& rstd, const Tensor& weight, const Tensor& bias);

// torch.ops.normext.group_norm_forward and group_norm_backward.
Forward forward_meta(const Tensor& input, c10::SymInt num_groups, const MaybeTensor& weight, const MaybeTensor& bias,
                     double eps, ActivationName activation, double slope);
Gradients backward_meta(const Tensor& grad_output, const Tensor& input, c10::SymInt num_groups, const Tensor& mean,
                        const Tensor& rstd, const MaybeTensor& weight, const MaybeTensor& bias, double eps, Mask mask,
                        ActivationName activation, double slope);

inline Forward call_forward(const Tensor& input, const c10::SymInt& num_groups, const MaybeTensor& weight,
                            const MaybeTensor& bias, double eps, ActivationName activation, double slope) {
  static const auto op = operator_handle<decltype(forward_meta)>("normext::group_norm_forward");
  return op.call(input, num_groups, weight, bias, eps, activation, slope);
}
inline Gradients call_backward(const Tensor& grad_output, const Tensor& input, const c10::SymInt& num_groups,
                               const Tensor& mean, const Tensor& rstd, const MaybeTensor& weight,
                               const MaybeTensor& bias, double eps, Mask mask, ActivationName activation,
                               double slope) {
  static const auto op = operator_handle<decltype(backward_meta)>("normext::group_norm_backward");
  return op.call(grad_output, input, num_groups, mean, rstd, weight, bias, eps, mask, activation, slope);
}

}  // namespace normext::group_norms
