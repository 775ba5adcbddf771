// row_norm_autograd.cpp -- derivatives of the row norms.
//
// The sum of a norm with a residual is linear in both of its terms. So its node is one over (output, sum) that saves
// the sum, and the second derivative, too, is that of a norm of the sum.
#include <numeric>

#include "double_backward.h"
#include "norm_node.h"
#include "row_norm_skin.h"

namespace normext {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// ------------------------------------------------------------------------------------------------ without a residual
template <RowNormKind kKind, RowStatistics kStatistics>
struct RowNormDerivative {
  static constexpr const char* kNames[][2] = {{"LayerNormBackward", "RMSNormBackward"},
                                              {"AddLayerNormBackward", "AddRMSNormBackward"},
                                              {"AdaptiveLayerNormBackward", "AdaptiveRMSNormBackward"}};
  static constexpr const char* kName = kNames[static_cast<int>(kKind)][static_cast<int>(kStatistics)];
  double eps, weight_offset;
  int64_t normalized_dims;

  Gradients gradients(const Tensor& grad_output, const Saved& s, Mask mask) const {
    const auto normalized_shape = s.input.sym_sizes().slice(s.input.dim() - normalized_dims);
    auto gradients =
        call_backward({kKind, kStatistics, eps, weight_offset},
                      {grad_output, {}, s.input, s.mean, s.rstd, s.weight, normalized_shape, s.input.scalar_type()},
                      {mask[0], false, mask[1], mask[2]});
    return {std::move(gradients.input), std::move(gradients.weight), std::move(gradients.bias)};
  }
  void collect(torch::dynamo::autograd::CompiledNodeArgs& args) const {
    args.collect(eps);
    args.collect(weight_offset);
    args.collect(normalized_dims);
  }
};

static RowNormOutputs below_autograd(const RowNorm& norm, const RowNormInputs& in) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call_forward(norm, in);
}

template <RowNormKind kKind, RowStatistics kStatistics>
static RowNormOutputs record_forward(const RowNorm& norm, const RowNormInputs& in) {
  const RowNormDerivative<kKind, kStatistics> derivative{norm.eps, norm.weight_offset,
                                                         static_cast<int64_t>(in.normalized_shape.size())};
  const auto node = make_node(derivative, in.input, in.weight, in.bias);
  auto outputs = below_autograd(norm, in);
  node->save({in.input, in.weight, outputs.mean, outputs.rstd});
  torch::autograd::set_history(outputs.output, node);
  return outputs;
}

// ------------------------------------------------------------------------------------------------ what functions save
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

// ------------------------------------------------------------------------------------------------ with a residual
// Its results are output and sum. Statistics leave it by `out`: compiled autograd takes no results without a
// derivative.
struct AddNormFunction : torch::autograd::Function<AddNormFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& residual,
                               const MaybeTensor& weight, const MaybeTensor& bias, const RowNorm& norm,
                               c10::SymIntArrayRef normalized_shape, RowNormOutputs& out) {
    out = below_autograd(norm, {input, residual, or_undefined(weight), or_undefined(bias), normalized_shape});
    ctx->save_for_backward({out.sum, or_undefined(weight), out.mean, out.rstd});
    ctx->saved_data["dtype"] = input.scalar_type();
    ctx->saved_data["parameters"] = c10::List<bool>({weight.has_value(), bias.has_value()});
    save(ctx, norm, static_cast<int64_t>(normalized_shape.size()));
    return {out.output, out.sum};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto dtype = ctx->saved_data["dtype"].toScalarType();
    const Tensor &grad_output = grads[0], &grad_sum = grads[1];
    if (!grad_output.defined()) {
      if (!grad_sum.defined()) return variable_list(7);
      return {grad_sum.to(dtype), grad_sum, {}, {}, {}, {}, {}};
    }
    const auto saved = ctx->get_saved_variables();
    const Tensor &sum = saved[0], &weight = saved[1], &mean = saved[2], &rstd = saved[3];
    const auto normalized_shape = sum.sym_sizes().slice(sum.dim() - ctx->saved_data["normalized_dims"].toInt());
    const bool mixed = sum.scalar_type() != dtype;
    const auto gradients = call_backward(
        saved_norm(ctx), {grad_output, grad_sum, sum, mean, rstd, weight, normalized_shape, dtype}, mask(ctx, mixed));
    return {
        gradients.input, mixed ? gradients.residual : gradients.input, gradients.weight, gradients.bias, {}, {}, {}};
  }

 private:
  // Absent parameters have no edge.
  static RowNormMask mask(AutogradContext* ctx, bool mixed) {
    const auto parameters = ctx->saved_data["parameters"].toBoolList();
    const bool input = ctx->needs_input_grad(0), residual = ctx->needs_input_grad(1);
    const bool weight = parameters[0] && ctx->needs_input_grad(2);
    const bool bias = parameters[1] && ctx->needs_input_grad(parameters[0] ? 3 : 2);
    return {input || (residual && !mixed), residual && mixed, weight, bias};
  }
};

static RowNormOutputs record_add(const RowNorm& norm, const RowNormInputs& in) {
  RowNormOutputs out;
  const auto differentiable = AddNormFunction::apply(in.input, in.residual, or_none(in.weight), or_none(in.bias), norm,
                                                     in.normalized_shape, out);
  out.output = differentiable[0];
  out.sum = differentiable[1];
  return out;
}

RowNormOutputs forward_autograd(const RowNorm& norm, const RowNormInputs& in) {
  if (!needs_autograd(norm.name(), in.input, in.residual, in.weight, in.bias)) return below_autograd(norm, in);
  constexpr auto plain = RowNormKind::plain, adaptive = RowNormKind::adaptive;
  constexpr auto centered = RowStatistics::centered, uncentered = RowStatistics::uncentered;
  if (norm.kind == RowNormKind::add) return record_add(norm, in);
  if (norm.adaptive())
    return norm.centered() ? record_forward<adaptive, centered>(norm, in)
                           : record_forward<adaptive, uncentered>(norm, in);
  return norm.centered() ? record_forward<plain, centered>(norm, in) : record_forward<plain, uncentered>(norm, in);
}

// ------------------------------------------------------------------------------------------------ of backward
static Normalization normalization(const RowNorm& norm, const Tensor& input, int64_t normalized_dims) {
  std::vector<int64_t> dim(normalized_dims);
  std::iota(dim.begin(), dim.end(), input.dim() - normalized_dims);
  return {input, dim, norm.eps, norm.centered()};
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
