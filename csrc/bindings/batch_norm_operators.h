// batch_norm_operators.h -- what BatchNorm's kernels, their derivatives and its public operators share: arguments,
// their checks, and the operators, called through torch's dispatcher.
//
// A backward operator is that of the norm, or that of the norm, a residual and an activation: it takes the gradient of
// the activation's output, and computes the activation's input anew from the norm's and the residual.
#pragma once
#include <string>

#include "channel_norm.h"

namespace normext::batch_norms {

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;       // output, mean, rstd, var
using WithResidual = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // gradients of input, weight, bias, residual
using ResidualMask = std::array<bool, 4>;                         // which of these are asked for

struct Arguments {
  const Tensor &running_mean, &running_var, &weight, &bias, &residual;

  Arguments(const MaybeTensor& mean, const MaybeTensor& var, const MaybeTensor& w, const MaybeTensor& b,
            const MaybeTensor& r)
      : running_mean(or_undefined(mean)),
        running_var(or_undefined(var)),
        weight(or_undefined(w)),
        bias(or_undefined(b)),
        residual(or_undefined(r)) {}
};

c10::SymInt channels_of(const Tensor& input);

// Throw what torch throws. They return the dtype of the parameters and running statistics, and that of the parameters'
// gradients.
at::ScalarType check(const Tensor& input, const Arguments& a, bool training, double eps);
at::ScalarType check_backward(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& rstd,
                              const Tensor& weight, const Tensor& bias = {}, const Tensor& residual = {});

// torch.ops.normext.batch_norm_forward, batch_norm_backward and batch_norm_activation_backward.
Forward forward_meta(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                     const MaybeTensor& weight, const MaybeTensor& bias, bool training, double eps,
                     const MaybeTensor& residual, ActivationName activation, double slope);
Gradients backward_meta(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& rstd,
                        const MaybeTensor& weight, bool training, double eps, Mask mask);
WithResidual activation_backward_meta(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                      const Tensor& rstd, const MaybeTensor& weight, const MaybeTensor& bias,
                                      const MaybeTensor& residual, bool training, double eps, ResidualMask mask,
                                      std::string_view activation, double slope);

inline Forward call_forward(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                            const MaybeTensor& weight, const MaybeTensor& bias, bool training, double eps,
                            const MaybeTensor& residual, ActivationName activation, double slope) {
  static const auto op = operator_handle<decltype(forward_meta)>("normext::batch_norm_forward");
  return op.call(input, running_mean, running_var, weight, bias, training, eps, residual, activation, slope);
}
inline Gradients call_backward(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& rstd,
                               const MaybeTensor& weight, bool training, double eps, Mask mask) {
  static const auto op = operator_handle<decltype(backward_meta)>("normext::batch_norm_backward");
  return op.call(grad_output, input, mean, rstd, weight, training, eps, mask);
}
inline WithResidual call_activation_backward(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                             const Tensor& rstd, const MaybeTensor& weight, const MaybeTensor& bias,
                                             const MaybeTensor& residual, bool training, double eps, ResidualMask mask,
                                             std::string_view activation, double slope) {
  static const auto op = operator_handle<decltype(activation_backward_meta)>("normext::batch_norm_activation_backward");
  return op.call(grad_output, input, mean, rstd, weight, bias, residual, training, eps, mask, activation, slope);
}

}  // namespace normext::batch_norms
