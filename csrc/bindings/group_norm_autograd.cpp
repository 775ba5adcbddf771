// group_norm_autograd.cpp -- derivatives of group_norm_forward and group_norm_backward.
#include "double_backward.h"
#include "group_norm_operators.h"
#include "norm_node.h"

namespace normext::group_norms {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What was given an activation is handed on as it is: the bias is asked for with one only.
struct GroupNormDerivative {
  static constexpr const char* kName = "GroupNormBackward";
  c10::SymInt num_groups;
  double eps;
  std::optional<std::string> activation;
  double slope;

  Gradients gradients(const Tensor& grad_output, const Saved& s, Mask mask) const {
    return call_backward(grad_output, s.input, num_groups, s.mean, s.rstd, or_none(s.weight), or_none(s.bias), eps,
                         mask, activation ? ActivationName(*activation) : std::nullopt, slope);
  }
  void collect(torch::dynamo::autograd::CompiledNodeArgs& args) const {
    args.collect(num_groups.maybe_as_int().value_or(-1));  // a symbolic one is the number of channels
    args.collect(eps);
    args.collect(activation);
    args.collect(slope);
  }
};

// The view of a tensor [N, C, *] as [N, groups, channels of one, *], and that of parameters [C] which broadcasts
// against it: statistics are over the dimensions from the third on.
struct Grouped {
  c10::SymInt groups, size;
  int64_t dim;

  Grouped(const Tensor& input, const c10::SymInt& num_groups)
      : groups(num_groups), size(input.sym_size(1) / num_groups), dim(input.dim()) {}

  Tensor view(const Tensor& tensor) const {
    return tensor.defined() ? tensor.unflatten_symint(1, {groups, size}) : tensor;
  }
  std::vector<c10::SymInt> parameter_shape() const {
    std::vector<c10::SymInt> shape(dim + 1, 1);
    shape[1] = groups;
    shape[2] = size;
    return shape;
  }
  Tensor parameter(const Tensor& tensor) const {
    return tensor.defined() ? tensor.view_symint(parameter_shape()) : tensor;
  }
  Normalization normalization(const Tensor& input, double eps) const {
    std::vector<int64_t> dims;
    for (int64_t d = 2; d <= dim; ++d) dims.push_back(d);
    return {view(input), dims, eps};
  }
};

Tensor flat(const Tensor& gradient) { return gradient.defined() ? gradient.flatten() : gradient; }
Tensor joined(const Tensor& tensor) { return tensor.defined() ? tensor.flatten(1, 2) : tensor; }

struct GroupNormBackwardFunction : torch::autograd::Function<GroupNormBackwardFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& input,
                               const MaybeTensor& weight, c10::SymInt num_groups, const Tensor& mean,
                               const Tensor& rstd, double eps, Mask mask) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto gradients =
        call_backward(grad_output, input, num_groups, mean, rstd, weight, std::nullopt, eps, mask, std::nullopt, 0);
    ctx->save_for_backward({grad_output, input, or_undefined(weight)});
    ctx->saved_data["num_groups"] = num_groups;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["mask"] = c10::List<bool>({mask[0], mask[1], mask[2]});
    ctx->set_materialize_grads(false);
    return only_defined(gradients);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &grad_output = saved[0], &input = saved[1], &weight = saved[2];
    const Grouped grouped(input, ctx->saved_data["num_groups"].toSymInt());
    const auto given = spread(grads, saved_mask(ctx));
    const auto norm = grouped.normalization(input, ctx->saved_data["eps"].toDouble());
    const auto gradients =
        double_backward({grouped.view(given[0]), grouped.parameter(given[1]), grouped.parameter(given[2])},
                        grouped.view(grad_output), grouped.view(input), grouped.parameter(weight), norm);
    return {joined(gradients.grad_output), joined(gradients.input), flat(gradients.weight), {}, {}, {}, {}, {}};
  }
};

Forward forward_autograd(const Tensor& input, c10::SymInt num_groups, const MaybeTensor& maybe_weight,
                         const MaybeTensor& maybe_bias, double eps, ActivationName activation, double slope) {
  const auto forward = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward(input, num_groups, maybe_weight, maybe_bias, eps, activation, slope);
  };
  const Tensor &weight = or_undefined(maybe_weight), &bias = or_undefined(maybe_bias);
  if (!needs_autograd("group_norm_forward", input, weight, bias)) return forward();
  const auto node = make_node(
      GroupNormDerivative{num_groups, eps, activation ? std::optional<std::string>(*activation) : std::nullopt, slope},
      input, weight, bias);
  auto outputs = forward();
  const auto& [output, mean, rstd, var] = outputs;
  node->save(input, weight, mean, rstd, activation ? bias : Tensor{});
  torch::autograd::set_history(output, node);
  return outputs;
}

Gradients backward_autograd(const Tensor& grad_output, const Tensor& input, c10::SymInt num_groups, const Tensor& mean,
                            const Tensor& rstd, const MaybeTensor& maybe_weight, const MaybeTensor& maybe_bias,
                            double eps, Mask mask, ActivationName activation, double slope) {
  const Tensor &weight = or_undefined(maybe_weight), &bias = or_undefined(maybe_bias);
  const bool tangents = have_tangents(grad_output, input, weight, bias);
  if (!tangents && !needs_autograd("group_norm_backward", grad_output, input, weight, bias)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_backward(grad_output, input, num_groups, mean, rstd, maybe_weight, maybe_bias, eps, mask, activation,
                         slope);
  }
  check_backward(grad_output, input, num_groups, mean, rstd, weight, bias);
  const Grouped grouped(input, num_groups);
  if (activation) {  // composed: the gradient goes through it first
    const auto norm = grouped.normalization(tangents ? input.to(at::kDouble) : input, eps);
    const Tensor g =
        joined(activation_gradient(activation_of("group_norm_backward", activation, slope), grouped.view(grad_output),
                                   norm.normalized(), grouped.parameter(weight), grouped.parameter(bias), {}));
    return backward_autograd(g, input, num_groups, mean, rstd, maybe_weight, std::nullopt, eps, mask, std::nullopt, 0);
  }
  if (tangents) {
    auto gradients =
        differentiable_backward(grouped.view(grad_output), grouped.view(input), grouped.parameter(weight),
                                grouped.normalization(input.to(at::kDouble), eps), grouped.parameter_shape(), mask);
    std::get<0>(gradients) = joined(std::get<0>(gradients));
    std::get<1>(gradients) = flat(std::get<1>(gradients));
    std::get<2>(gradients) = flat(std::get<2>(gradients));
    return gradients;
  }
  const auto gradients = spread(
      GroupNormBackwardFunction::apply(grad_output, input, maybe_weight, num_groups, mean, rstd, eps, mask), mask);
  return {gradients[0], gradients[1], gradients[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(normext, Autograd, m) {
  m.impl("group_norm_forward", forward_autograd);
  m.impl("group_norm_backward", backward_autograd);
}

}  // namespace normext::group_norms
