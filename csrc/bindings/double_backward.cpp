#include "double_backward.h"

#include <ATen/OpMathType.h>

namespace normext {

static Tensor wide(const Tensor& tensor) { return tensor.to(at::toOpMathType(tensor.scalar_type())); }

Normalization::Normalization(const Tensor& input, at::IntArrayRef dim, double eps, bool centered)
    : dim_(dim.vec()), centered_(centered) {
  const Tensor x = wide(input), difference = centered ? x - mean(x) : x;
  rstd_ = (mean(difference * difference) + eps).rsqrt();
  normalized_ = difference * rstd_;
}

Normalization::Normalization(const Tensor& input, const Tensor& mean, const Tensor& rstd)
    : rstd_(rstd), normalized_((wide(input) - mean) * rstd) {}

Tensor Normalization::project(const Tensor& v) const {
  const Tensor rest = v - normalized_ * mean(v * normalized_);
  return centered_ ? rest - mean(v) : rest;
}

Tensor Normalization::jacobian(const Tensor& v) const { return rstd_ * (fixed() ? v : project(v)); }

Tensor Normalization::second_derivative(const Tensor& a, const Tensor& b) const {
  if (fixed()) return {};
  const Tensor pa = project(a), pb = project(b);
  return -rstd_ * rstd_ * (normalized_ * mean(a * pb) + mean(b * normalized_) * pa + mean(a * normalized_) * pb);
}

Gradients differentiable_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                  const Normalization& norm, c10::SymIntArrayRef parameter_shape, Mask mask,
                                  double weight_offset) {
  const Tensor dy = grad_output.to(at::kDouble);
  const auto parameter = [&](const Tensor& terms) {
    return terms.sum_to_size_symint(parameter_shape).to(gradient_type(input, weight));
  };
  return {
      mask[0]
          ? norm.jacobian(weight.defined() ? dy * (weight.to(at::kDouble) + weight_offset) : dy).to(input.scalar_type())
          : Tensor{},
      mask[1] ? parameter(dy * norm.normalized()) : Tensor{}, mask[2] ? parameter(dy) : Tensor{}};
}

DoubleBackward double_backward(const std::array<Tensor, 3>& grads, const Tensor& grad_output, const Tensor& input,
                               const Tensor& weight, const Normalization& norm, double weight_offset) {
  Tensor to_output, to_input, to_weight;
  const auto accumulate = [](Tensor& total, const Tensor& term) {
    if (term.defined()) total = total.defined() ? total + term : term;
  };
  const Tensor dy = wide(grad_output);
  const auto weighted = [&](const Tensor& v) {
    if (!weight.defined()) return v;
    return v * (weight_offset == 0 ? weight : wide(weight) + weight_offset);
  };

  if (grads[0].defined()) {
    const Tensor gg = wide(grads[0]), j = norm.jacobian(gg);
    accumulate(to_output, weighted(j));
    accumulate(to_input, norm.second_derivative(gg, weighted(dy)));
    if (weight.defined()) accumulate(to_weight, (dy * j).sum_to_size_symint(weight.sym_sizes()));
  }
  if (grads[1].defined()) {
    const Tensor gg = wide(grads[1]);
    accumulate(to_output, gg * norm.normalized());
    accumulate(to_input, norm.jacobian(gg * dy));
  }
  if (grads[2].defined()) accumulate(to_output, wide(grads[2]).expand_symint(grad_output.sym_sizes()));

  const auto like = [](const Tensor& gradient, const Tensor& original) {
    return gradient.defined() ? gradient.to(original.scalar_type()) : gradient;
  };
  return {like(to_output, grad_output), like(to_input, input), like(to_weight, weight)};
}

static Tensor second_derivative(const Tensor& input, const Tensor& a, const Tensor& b, at::IntArrayRef dim, double eps,
                                bool centered) {
  return Normalization(input, dim, eps, centered).second_derivative(wide(a), wide(b)).to(input.scalar_type());
}

TORCH_LIBRARY_IMPL(normext, CompositeImplicitAutograd, m) { m.impl("second_derivative", second_derivative); }
// vmap knows how to batch what the function is made of, if it is told to look inside.
TORCH_LIBRARY_IMPL(normext, FuncTorchBatchedDecomposition, m) { m.impl("second_derivative", second_derivative); }

}  // namespace normext
