// double_backward.h -- second derivatives, the same for every norm that takes its statistics over some dimensions.
//
// With x̂(x) = (x - mean) * rstd, means taken over `dim`, and the projection P(v) = v - mean(v) - x̂ mean(v x̂):
//   the Jacobian of x̂ is J[v] = rstd P(v). It is symmetric (x̂ is the gradient of n / rstd), so J is its own transpose;
//   its derivative is T[a, b] = -rstd^2 (x̂ mean(a P(b)) + mean(b x̂) P(a) + mean(a x̂) P(b)), symmetric in a and b.
// Without a mean (RMSNorm), P(v) = v - x̂ mean(v x̂), and the rest is the same.
// Written in differentiable tensor operations on x itself, so that derivatives of every higher order come out right.
#pragma once
#include "common.h"

namespace normext {

class Normalization {
 public:
  // By input's own statistics over `dim`. Any shape and floating dtype; computed in float32 at least.
  Normalization(const Tensor& input, at::IntArrayRef dim, double eps, bool centered = true);
  // By given statistics, which broadcast against input: J[v] = rstd v, and T = 0.
  Normalization(const Tensor& input, const Tensor& mean, const Tensor& rstd);

  const Tensor& normalized() const { return normalized_; }
  Tensor jacobian(const Tensor& v) const;
  Tensor second_derivative(const Tensor& a, const Tensor& b) const;  // undefined where it is zero

 private:
  Tensor mean(const Tensor& v) const { return v.mean(dim_, /*keepdim=*/true); }
  Tensor project(const Tensor& v) const;

  bool fixed() const { return dim_.empty(); }

  std::vector<int64_t> dim_;
  bool centered_ = true;
  Tensor rstd_, normalized_;
};

// A norm's backward, in float64 and in operations that forward-mode AD can follow. `weight`, which may be undefined,
// and parameter_shape broadcast against input; `norm` is of input.to(at::kDouble).
Gradients differentiable_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                  const Normalization& norm, c10::SymIntArrayRef parameter_shape, Mask mask,
                                  double weight_offset = 0);

struct DoubleBackward {
  Tensor grad_output, input, weight;
};

// The derivative of a norm's backward, grad_input = J[grad_output * weight], grad_weight = sum(grad_output * x̂),
// grad_bias = sum(grad_output), with respect to grad_output, input and weight. `grads` are the gradients of those three
// outputs, undefined where there is none; `weight` may be undefined, and broadcasts against input. In the place of
// `weight` stands weight + weight_offset where there is one.
DoubleBackward double_backward(const std::array<Tensor, 3>& grads, const Tensor& grad_output, const Tensor& input,
                               const Tensor& weight, const Normalization& norm, double weight_offset = 0);

}  // namespace normext
