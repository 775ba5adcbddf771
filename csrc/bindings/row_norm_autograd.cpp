// row_norm_autograd.cpp -- derivatives of the row norms.
//
// The sum of a norm with a residual is linear in both of its terms. So its node is one over (output, sum) that saves
// the sum, and the second derivative, too, is that of a norm of the sum.
#include <algorithm>
#include <numeric>

#include "double_backward.h"
#include "norm_node.h"
#include "row_norm_skin.h"

namespace normext {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// ------------------------------------------------------------------------------------------------ of forward
// One type for each norm: the engine, profilers and hooks tell nodes by name.
template <RowNormKind kKind, RowStatistics kStatistics>
struct RowNormDerivative {
  static constexpr const char* kNames[][2] = {{"LayerNormBackward", "RMSNormBackward"},
                                              {"AddLayerNormBackward", "AddRMSNormBackward"},
                                              {"AdaptiveLayerNormBackward", "AdaptiveRMSNormBackward"}};
  static constexpr const char* kName = kNames[static_cast<int>(kKind)][static_cast<int>(kStatistics)];
  double eps, weight_offset;
  int64_t normalized_dims;
  at::ScalarType dtype;  // the output's

  Gradients gradients(const Tensor& grad_output, const Saved& s, const Mask& mask) const {
    const bool adds_each = kKind == RowNormKind::adaptive && mask[2] && has_shift_of_each_element(grad_output, s);
    auto gradients = call(grad_output, {}, s, {mask[0], false, mask[1], mask[2] && !adds_each});
    return {std::move(gradients.input), std::move(gradients.weight), adds_each ? grad_output : gradients.bias};
  }
  // With a residual: of input, residual, weight and bias. Where both terms are of one dtype, one tensor is the gradient
  // of both.
  variable_list gradients(const variable_list& grads, const Saved& s, const RowNormMask& mask) const {
    const Tensor &grad_output = grads[0], &grad_sum = grads[1];
    if (!grad_output.defined()) {
      if (!grad_sum.defined()) return variable_list(4);
      return {grad_sum.to(dtype), grad_sum, {}, {}};
    }
    const bool mixed = s.input.scalar_type() != dtype;
    const RowNormMask apart{mask[0] || (mask[1] && !mixed), mask[1] && mixed, mask[2], mask[3]};
    auto gradients = call(grad_output, grad_sum, s, apart);
    return {gradients.input, mixed ? gradients.residual : gradients.input, gradients.weight, gradients.bias};
  }
  void collect(torch::dynamo::autograd::CompiledNodeArgs& args) const {
    args.collect(eps);
    args.collect(weight_offset);
    args.collect(normalized_dims);
    args.collect(static_cast<int64_t>(dtype));
  }

 private:
  // A shift that is added to one element alone has that element's gradient: there is nothing to add up or to copy.
  static bool has_shift_of_each_element(const Tensor& grad_output, const Saved& s) {
    const auto equal = [](const c10::SymInt& x, const c10::SymInt& y) { return TORCH_GUARD_OR_FALSE(x.sym_eq(y)); };
    const auto lines = s.weight.sym_sizes(), input = s.input.sym_sizes();
    return std::equal(lines.begin(), lines.end(), input.begin(), input.end(), equal) &&
           s.weight.scalar_type() == grad_output.scalar_type();
  }
  RowNormGradients call(const Tensor& grad_output, const Tensor& grad_sum, const Saved& s,
                        const RowNormMask& mask) const {
    const auto normalized_shape = s.input.sym_sizes().slice(s.input.dim() - normalized_dims);
    return call_backward({kKind, kStatistics, eps, weight_offset},
                         {grad_output, grad_sum, s.input, s.mean, s.rstd, s.weight, normalized_shape, dtype}, mask);
  }
};

static RowNormOutputs below_autograd(const RowNorm& norm, const RowNormInputs& in) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call_forward(norm, in);
}

template <RowNormKind kKind, RowStatistics kStatistics>
static RowNormOutputs record(const RowNorm& norm, const RowNormInputs& in) {
  const RowNormDerivative<kKind, kStatistics> derivative{
      norm.eps, norm.weight_offset, static_cast<int64_t>(in.normalized_shape.size()), in.input.scalar_type()};
  const auto node = [&] {
    if constexpr (kKind == RowNormKind::add)
      return make_node(derivative, in.input, in.residual, in.weight, in.bias);
    else
      return make_node(derivative, in.input, in.weight, in.bias);
  }();
  auto outputs = below_autograd(norm, in);
  torch::autograd::set_history(outputs.output, node);
  if (outputs.sum.defined()) torch::autograd::set_history(outputs.sum, node);
  node->save(outputs.sum.defined() ? outputs.sum : in.input, in.weight, outputs.mean, outputs.rstd);
  return outputs;
}

template <RowNormKind kKind>
static RowNormOutputs record(const RowNorm& norm, const RowNormInputs& in) {
  return norm.centered() ? record<kKind, RowStatistics::centered>(norm, in)
                         : record<kKind, RowStatistics::uncentered>(norm, in);
}

RowNormOutputs forward_autograd(const RowNorm& norm, const RowNormInputs& in) {
  if (!needs_autograd(norm.name(), in.input, in.residual, in.weight, in.bias)) return below_autograd(norm, in);
  switch (norm.kind) {
    case RowNormKind::add:
      return record<RowNormKind::add>(norm, in);
    case RowNormKind::adaptive:
      return record<RowNormKind::adaptive>(norm, in);
    default:
      return record<RowNormKind::plain>(norm, in);
  }
}

// ------------------------------------------------------------------------------------------------ of backward
static Normalization normalization(const RowNorm& norm, const Tensor& input, int64_t normalized_dims) {
  std::vector<int64_t> dim(normalized_dims);
  std::iota(dim.begin(), dim.end(), input.dim() - normalized_dims);
  return {input, dim, norm.eps, norm.centered()};
}

static void save(AutogradContext* ctx, const RowNorm& norm, int64_t normalized_dims) {
  ctx->saved_data["kind"] = static_cast<int64_t>(norm.kind);
  ctx->saved_data["statistics"] = static_cast<int64_t>(norm.statistics);
  ctx->saved_data["eps"] = norm.eps;
  ctx->saved_data["weight_offset"] = norm.weight_offset;
  ctx->saved_data["normalized_dims"] = normalized_dims;
  ctx->set_materialize_grads(false);
}

static RowNorm saved_norm(AutogradContext* ctx) {
  return {static_cast<RowNormKind>(ctx->saved_data["kind"].toInt()),
          static_cast<RowStatistics>(ctx->saved_data["statistics"].toInt()), ctx->saved_data["eps"].toDouble(),
          ctx->saved_data["weight_offset"].toDouble()};
}

struct RowNormBackwardFunction : torch::autograd::Function<RowNormBackwardFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, const MaybeTensor& grad_sum,
                               const Tensor& input, const MaybeTensor& weight, const RowNorm& norm,
                               const RowNormGrads& in, const RowNormMask& mask) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [grad_input, grad_residual, grad_weight, grad_bias] = call_backward(norm, in, mask);
    ctx->save_for_backward({grad_output, input, or_undefined(weight)});
    ctx->saved_data["mask"] = c10::List<bool>({mask[0], mask[1], mask[2], mask[3]});
    ctx->saved_data["has_grad_sum"] = grad_sum.has_value();
    save(ctx, norm, static_cast<int64_t>(in.normalized_shape.size()));
    variable_list asked;
    for (auto& gradient : {grad_input, grad_residual, grad_weight, grad_bias})
      if (gradient.defined()) asked.push_back(gradient);
    return asked;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &grad_output = saved[0], &input = saved[1], &weight = saved[2];
    const RowNorm norm = saved_norm(ctx);
    const auto [to_input, to_residual, to_weight, to_bias] = in_places(ctx, grads);
    const Tensor to_sum = add(to_input, to_residual, input.scalar_type());
    const auto gradients =
        double_backward({to_sum, to_weight, to_bias}, grad_output, input, weight,
                        normalization(norm, input, ctx->saved_data["normalized_dims"].toInt()), norm.weight_offset);
    const bool has_grad_sum = ctx->saved_data["has_grad_sum"].toBool();
    return {gradients.grad_output, has_grad_sum ? to_sum : Tensor{}, gradients.input, gradients.weight, {}, {}, {}};
  }

 private:
  static std::array<Tensor, 4> in_places(AutogradContext* ctx, const variable_list& grads) {
    const auto mask = ctx->saved_data["mask"].toBoolList();
    std::array<Tensor, 4> gradients;
    for (size_t i = 0, next = 0; i < gradients.size(); ++i)
      if (mask[i]) gradients[i] = grads[next++];
    return gradients;
  }
  // The gradients of one number that was rounded to two dtypes, in the wider one.
  static Tensor add(const Tensor& a, const Tensor& b, at::ScalarType type) {
    if (!a.defined()) return b;
    return b.defined() ? a.to(type) + b : a.to(type);
  }
};

// By operations that forward-mode AD can follow.
static RowNormGradients differentiable(const RowNorm& norm, const RowNormGrads& in, const RowNormMask& mask) {
  check_backward(norm, in, mask);
  const auto dims = static_cast<int64_t>(in.normalized_shape.size());
  const Tensor input = in.input.to(at::kDouble);
  auto [dx, grad_weight, grad_bias] =
      differentiable_backward(in.grad_output, input, in.weight, normalization(norm, input, dims),
                              norm.adaptive() ? in.weight.sym_sizes() : in.normalized_shape,
                              {mask[0] || mask[1], mask[2], mask[3]}, norm.weight_offset);
  if (dx.defined() && in.grad_sum.defined()) dx = dx + in.grad_sum;
  const auto parameters = gradient_type(in.input, in.weight);
  const auto parameter = [&](const Tensor& t) { return t.defined() ? t.to(parameters) : t; };
  return {mask[0] ? dx.to(in.dtype) : Tensor{}, mask[1] ? dx.to(in.input.scalar_type()) : Tensor{},
          parameter(grad_weight), parameter(grad_bias)};
}

RowNormGradients backward_autograd(const RowNorm& norm, const RowNormGrads& in, const RowNormMask& mask) {
  if (have_tangents(in.grad_output, in.grad_sum, in.input, in.weight)) return differentiable(norm, in, mask);
  if (!needs_autograd(norm.name(), in.grad_output, in.grad_sum, in.input, in.weight) || mask == RowNormMask{}) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_backward(norm, in, mask);
  }
  const auto asked = RowNormBackwardFunction::apply(in.grad_output, or_none(in.grad_sum), in.input, or_none(in.weight),
                                                    norm, in, mask);
  std::array<Tensor, 4> gradients;
  for (size_t i = 0, next = 0; i < gradients.size(); ++i)
    if (mask[i]) gradients[i] = asked[next++];
  return {gradients[0], gradients[1], gradients[2], gradients[3]};
}

}  // namespace normext
