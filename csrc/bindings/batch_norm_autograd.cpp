// batch_norm_autograd.cpp -- derivatives of BatchNorm, of what follows it, and of its backward.
#include "batch_norm.h"
#include "batch_norm_operators.h"
#include "double_backward.h"
#include "norm_node.h"

namespace normext {
namespace batch_norms {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// ------------------------------------------------------------------------------------------------ of forward
// What is no tensor that has a derivative.
struct Options {
  const MaybeTensor &running_mean, &running_var;
  bool training;
  double eps;
  ActivationName activation;
  double slope;
};

using OwnedName = std::optional<std::string>;  // of an activation, as long as a graph lives
static OwnedName owned(const ActivationName& name) { return name ? OwnedName(*name) : std::nullopt; }

// Without a residual.
struct BatchNormDerivative {
  static constexpr const char* kName = "BatchNormBackward";
  double eps;
  bool training;
  OwnedName activation;
  double slope;

  Gradients gradients(const Tensor& grad_output, const Saved& s, Mask mask) const {
    const auto weight = or_none(s.weight);
    if (!activation) return call_backward(grad_output, s.input, s.mean, s.rstd, weight, training, eps, mask);
    auto [grad_input, grad_weight, grad_bias, none] =
        call_activation_backward(grad_output, s.input, s.mean, s.rstd, weight, or_none(s.bias), std::nullopt, training,
                                 eps, {mask[0], mask[1], mask[2], false}, *activation, slope);
    return {std::move(grad_input), std::move(grad_weight), std::move(grad_bias)};
  }
  void collect(torch::dynamo::autograd::CompiledNodeArgs& args) const {
    args.collect(eps);
    args.collect(training);
    args.collect(activation);
    args.collect(slope);
  }
};

// With one. Statistics leave it by `out`: compiled autograd takes no results without a derivative. Without an
// activation the residual's gradient is that of the output.
struct BatchNormResidualFunction : torch::autograd::Function<BatchNormResidualFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& residual, const MaybeTensor& weight,
                        const MaybeTensor& bias, const Options& options, Forward& out) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    out = call_forward(input, options.running_mean, options.running_var, weight, bias, options.training, options.eps,
                       residual, options.activation, options.slope);
    const auto& [output, mean, rstd, var] = out;
    const bool saved = options.activation.has_value();
    ctx->save_for_backward(
        {input, mean, rstd, or_undefined(weight), saved ? or_undefined(bias) : Tensor{}, saved ? residual : Tensor{}});
    ctx->saved_data["training"] = options.training;
    ctx->saved_data["eps"] = options.eps;
    ctx->saved_data["activation"] = owned(options.activation);
    ctx->saved_data["slope"] = options.slope;
    ctx->saved_data["parameters"] = c10::List<bool>({weight.has_value(), bias.has_value()});
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &grad_output = grads[0], &input = saved[0], &mean = saved[1], &rstd = saved[2];
    const auto weight = or_none(saved[3]);
    const bool training = ctx->saved_data["training"].toBool();
    const double eps = ctx->saved_data["eps"].toDouble();
    const auto mask = wanted(ctx);
    const auto activation = ctx->saved_data["activation"].toOptional<std::string>();
    if (!activation) {
      const auto [grad_input, grad_weight, grad_bias] =
          call_backward(grad_output, input, mean, rstd, weight, training, eps, {mask[0], mask[1], mask[2]});
      return {grad_input, grad_output, grad_weight, grad_bias, {}, {}};
    }
    const auto [grad_input, grad_weight, grad_bias, grad_residual] =
        call_activation_backward(grad_output, input, mean, rstd, weight, or_none(saved[4]), or_none(saved[5]), training,
                                 eps, mask, *activation, ctx->saved_data["slope"].toDouble());
    return {grad_input, grad_residual, grad_weight, grad_bias, {}, {}};
  }

 private:
  // Absent parameters have no edge.
  static ResidualMask wanted(AutogradContext* ctx) {
    const auto parameters = ctx->saved_data["parameters"].toBoolList();
    return {ctx->needs_input_grad(0), parameters[0] && ctx->needs_input_grad(2),
            parameters[1] && ctx->needs_input_grad(parameters[0] ? 3 : 2), ctx->needs_input_grad(1)};
  }
};

// ------------------------------------------------------------------------------------------------ of backward

// The shape in which per-channel tensors broadcast against input.
static std::vector<c10::SymInt> channel_shape(const Tensor& input) {
  std::vector<c10::SymInt> shape(input.dim(), 1);
  shape[input.dim() >= 2 ? 1 : 0] = channels_of(input);
  return shape;
}

static Tensor per_channel(const Tensor& tensor, const Tensor& input) {
  return tensor.defined() ? tensor.view_symint(channel_shape(input)) : tensor;
}

static Normalization normalization(const Tensor& input, const Tensor& mean, const Tensor& rstd, bool training,
                                   double eps) {
  if (!training) return {input, per_channel(mean, input), per_channel(rstd, input)};
  std::vector<int64_t> dim = {0};
  for (int64_t d = 2; d < input.dim(); ++d) dim.push_back(d);
  return {input, dim, eps};
}

struct BatchNormBackwardFunction : torch::autograd::Function<BatchNormBackwardFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                               const Tensor& rstd, const MaybeTensor& weight, bool training, double eps, Mask mask) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto gradients = call_backward(grad_output, input, mean, rstd, weight, training, eps, mask);
    ctx->save_for_backward({grad_output, input, mean, rstd, or_undefined(weight)});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["training"] = training;
    ctx->saved_data["mask"] = c10::List<bool>({mask[0], mask[1], mask[2]});
    ctx->set_materialize_grads(false);
    return only_defined(gradients);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &grad_output = saved[0], &input = saved[1], &weight = saved[4];
    const auto norm = normalization(input, saved[2], saved[3], ctx->saved_data["training"].toBool(),
                                    ctx->saved_data["eps"].toDouble());
    // Per-channel gradients broadcast as weight does.
    const auto given = spread(grads, saved_mask(ctx));
    const auto gradients = double_backward({given[0], per_channel(given[1], input), per_channel(given[2], input)},
                                           grad_output, input, per_channel(weight, input), norm);
    const Tensor grad_weight = gradients.weight.defined() ? gradients.weight.view_symint(weight.sym_sizes()) : Tensor{};
    return {gradients.grad_output, gradients.input, {}, {}, grad_weight, {}, {}, {}};
  }
};

static Forward forward_autograd(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                                const MaybeTensor& maybe_weight, const MaybeTensor& maybe_bias, bool training,
                                double eps, const MaybeTensor& residual, ActivationName activation, double slope) {
  check_not_differentiated(running_mean, running_var, training);
  const Tensor &weight = or_undefined(maybe_weight), &bias = or_undefined(maybe_bias);
  const auto forward = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward(input, running_mean, running_var, maybe_weight, maybe_bias, training, eps, residual, activation,
                        slope);
  };
  if (!needs_autograd("batch_norm_forward", input, weight, bias, or_undefined(residual))) return forward();
  if (residual) {
    Forward out;
    std::get<0>(out) =
        BatchNormResidualFunction::apply(input, *residual, maybe_weight, maybe_bias,
                                         Options{running_mean, running_var, training, eps, activation, slope}, out);
    return out;
  }
  const auto node = make_node(BatchNormDerivative{eps, training, owned(activation), slope}, input, weight, bias);
  auto outputs = forward();
  const auto& [output, mean, rstd, var] = outputs;
  node->save(input, weight, mean, rstd, activation ? bias : Tensor{});
  torch::autograd::set_history(output, node);
  return outputs;
}

static Gradients backward_autograd(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                   const Tensor& rstd, const MaybeTensor& weight, bool training, double eps,
                                   Mask mask) {
  if (have_tangents(grad_output, input, or_undefined(weight))) {
    check_backward(grad_output, input, mean, rstd, or_undefined(weight));
    const auto norm = normalization(input.to(at::kDouble), mean, rstd, training, eps);
    auto gradients = differentiable_backward(grad_output, input, per_channel(or_undefined(weight), input), norm,
                                             channel_shape(input), mask);
    for (Tensor* t : {&std::get<1>(gradients), &std::get<2>(gradients)})
      if (t->defined()) *t = t->view_symint(channels_of(input));
    return gradients;
  }
  if (!needs_autograd("batch_norm_backward", grad_output, input, or_undefined(weight))) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_backward(grad_output, input, mean, rstd, weight, training, eps, mask);
  }
  const auto gradients =
      spread(BatchNormBackwardFunction::apply(grad_output, input, mean, rstd, weight, training, eps, mask), mask);
  return {gradients[0], gradients[1], gradients[2]};
}

// Composed where it is to be differentiated: the gradient goes through the activation first.
static WithResidual activation_backward_autograd(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                                 const Tensor& rstd, const MaybeTensor& maybe_weight,
                                                 const MaybeTensor& maybe_bias, const MaybeTensor& maybe_residual,
                                                 bool training, double eps, ResidualMask mask,
                                                 std::string_view activation, double slope) {
  const Tensor &weight = or_undefined(maybe_weight), &bias = or_undefined(maybe_bias);
  const Tensor& residual = or_undefined(maybe_residual);
  const bool tangents = have_tangents(grad_output, input, weight, bias, residual);
  if (!tangents && !needs_autograd("batch_norm_activation_backward", grad_output, input, weight, bias, residual)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_activation_backward(grad_output, input, mean, rstd, maybe_weight, maybe_bias, maybe_residual, training,
                                    eps, mask, activation, slope);
  }
  check_backward(grad_output, input, mean, rstd, weight, bias, residual);
  const auto norm = normalization(tangents ? input.to(at::kDouble) : input, mean, rstd, training, eps);
  const Tensor g =
      activation_gradient(activation_of("batch_norm_activation_backward", activation, slope), grad_output,
                          norm.normalized(), per_channel(weight, input), per_channel(bias, input), residual);
  Gradients gradients;
  if (mask[0] || mask[1] || mask[2])
    gradients = backward_autograd(g, input, mean, rstd, maybe_weight, training, eps, {mask[0], mask[1], mask[2]});
  auto& [grad_input, grad_weight, grad_bias] = gradients;
  return {std::move(grad_input), std::move(grad_weight), std::move(grad_bias), mask[3] ? g : Tensor{}};
}

}  // namespace batch_norms

TORCH_LIBRARY_IMPL(normext, Autograd, m) {
  m.impl("batch_norm_forward", batch_norms::forward_autograd);
  m.impl("batch_norm_backward", batch_norms::backward_autograd);
  m.impl("batch_norm_activation_backward", batch_norms::activation_backward_autograd);
}

}  // namespace normext
