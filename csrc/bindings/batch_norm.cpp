// batch_norm.cpp -- torch's side of BatchNorm: argument checks, allocation, derivatives, running statistics.
#include "batch_norm.h"

#include <torch/csrc/autograd/VariableTypeUtils.h>

#include "channel_norm.h"
#include "double_backward.h"
#include "norm_node.h"
#include "ops/channel_norm.h"

namespace normext {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// ------------------------------------------------------------------------------------------------ checks, allocation
struct Arguments {
  Tensor running_mean, running_var, weight, bias;

  Arguments(const MaybeTensor& mean, const MaybeTensor& var, const MaybeTensor& w, const MaybeTensor& b)
      : running_mean(or_undefined(mean)),
        running_var(or_undefined(var)),
        weight(or_undefined(w)),
        bias(or_undefined(b)) {}
};

c10::SymInt channels_of(const Tensor& input) {
  TORCH_CHECK(input.dim() >= 2 || is_empty(input),
              "batch_norm: expected input of at least 2 dimensions, [N, C, *], but got input of size ",
              input.sym_sizes());
  return input.dim() >= 2 ? input.sym_size(1) : 0;
}

// Returns the dtype of the parameters and running statistics.
at::ScalarType check(const Tensor& input, const Arguments& a, bool training, double eps) {
  const auto channels = channels_of(input);
  check_input_dtype("batch_norm", input);
  if (training) {
    TORCH_CHECK_VALUE(a.running_mean.defined() == a.running_var.defined(),
                      "running_mean and running_var must either both be None or neither be None");
    const auto sizes = input.sym_sizes();
    TORCH_CHECK_VALUE(sizes.size() < 2 || expect_other(sizes[0] * c10::multiply_integers(sizes.slice(2)), 1),
                      "Expected more than 1 value per channel when training, got input size torch.Size(", sizes, ")");
    TORCH_CHECK_VALUE(eps > 0, "batch_norm eps must be positive during training, but got ", eps);
  } else {
    TORCH_CHECK(a.running_mean.defined(), "running_mean must be defined in evaluation mode");
    TORCH_CHECK(a.running_var.defined(), "running_var must be defined in evaluation mode");
    TORCH_CHECK_VALUE(eps >= 0, "batch_norm eps must be non-negative, but got ", eps);
  }
  check_size("running_mean", a.running_mean, channels);
  check_size("running_var", a.running_var, channels);
  check_size("weight", a.weight, channels);
  check_size("bias", a.bias, channels);
  return check_dtypes(
      "batch_norm", input,
      {{"weight", a.weight}, {"bias", a.bias}, {"running_mean", a.running_mean}, {"running_var", a.running_var}});
}

Forward allocate(const Tensor& input, bool training) {
  const auto array = [&, type = statistics_type(input)](c10::SymInt size) { return empty(input, size, type); };
  const auto channels = channels_of(input);
  return {allocate_like(input), array(channels), array(channels), array(training ? channels : 0)};
}

Gradients allocate_gradients(const Tensor& input, at::ScalarType parameters, Mask mask) {
  const auto parameter = [&](bool wanted) { return wanted ? empty(input, channels_of(input), parameters) : Tensor{}; };
  return {mask[0] ? allocate_like(input) : Tensor{}, parameter(mask[1]), parameter(mask[2])};
}

// ------------------------------------------------------------------------------------------------ kernels and shapes
Forward forward_meta(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                     const MaybeTensor& weight, const MaybeTensor& bias, bool training, double eps) {
  check(input, {running_mean, running_var, weight, bias}, training, eps);
  return allocate(input, training);
}

Forward forward_kernel(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                       const MaybeTensor& weight, const MaybeTensor& bias, bool training, double eps) {
  Arguments a(running_mean, running_var, weight, bias);
  const auto param_type = check(input, a, training, eps);
  auto outputs = allocate(input, training);
  auto& [output, mean, rstd, var] = outputs;
  if (input.numel() == 0) {  // a batch of nothing has no statistics
    for (const Tensor& statistic : {mean, rstd, var}) statistic.zero_();
    return outputs;
  }
  const auto format = memory_format(input);
  const Tensor data = input.contiguous(format);
  for (Tensor* t : {&a.running_mean, &a.running_var, &a.weight, &a.bias}) *t = contiguous_or_undefined(*t);
  BatchNormForward op{};
  op.input = data.const_data_ptr();
  op.weight = data_or_null(a.weight);
  op.bias = data_or_null(a.bias);
  op.output = output.mutable_data_ptr();
  op.mean = mean.mutable_data_ptr();
  op.rstd = rstd.mutable_data_ptr();
  if (training) {
    op.var = var.mutable_data_ptr();
  } else {
    op.running_mean = a.running_mean.const_data_ptr();
    op.running_var = a.running_var.const_data_ptr();
  }
  op.shape = shape_of(input, format);
  op.eps = eps;
  op.dtype = dtype_of(input.scalar_type());
  op.param_dtype = dtype_of(param_type);
  run(op, input.device());
  return outputs;
}

at::ScalarType check_backward(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& rstd,
                              const Tensor& weight) {
  const auto channels = channels_of(input);
  check_input_dtype("batch_norm_backward", input);
  check_device("batch_norm_backward", "grad_output", grad_output, input);
  check_device("batch_norm_backward", "mean", mean, input);
  check_device("batch_norm_backward", "rstd", rstd, input);
  TORCH_CHECK(
      expect_equal(grad_output.sym_sizes(), input.sym_sizes()) && grad_output.scalar_type() == input.scalar_type(),
      "batch_norm_backward: expected grad_output of input's shape and dtype, ", input.sym_sizes(), " and ",
      input.scalar_type(), ", but got ", grad_output.sym_sizes(), " and ", grad_output.scalar_type());
  const auto check_statistics = [&](const char* name, const Tensor& statistics) {
    TORCH_CHECK(expect_equal(statistics.sym_numel(), channels) && statistics.scalar_type() == statistics_type(input),
                "batch_norm_backward: expected ", name, " as batch_norm_forward returns it, one ",
                statistics_type(input), " per channel, but got ", statistics.sym_sizes(), " of ",
                statistics.scalar_type());
  };
  check_statistics("mean", mean);
  check_statistics("rstd", rstd);
  check_size("weight", weight, channels);
  check_dtypes("batch_norm_backward", input, {{"weight", weight}});
  return gradient_type(input, weight);
}

Gradients backward_meta(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& rstd,
                        const MaybeTensor& weight, bool, double, Mask mask) {
  const auto param_type = check_backward(grad_output, input, mean, rstd, or_undefined(weight));
  return allocate_gradients(input, param_type, mask);
}

Gradients backward_kernel(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& rstd,
                          const MaybeTensor& maybe_weight, bool training, double, Mask mask) {
  const Tensor weight = contiguous_or_undefined(or_undefined(maybe_weight));
  const auto param_type = check_backward(grad_output, input, mean, rstd, weight);
  auto gradients = allocate_gradients(input, param_type, mask);
  auto& [grad_input, grad_weight, grad_bias] = gradients;
  if (input.numel() == 0) {
    if (grad_weight.defined()) grad_weight.zero_();
    if (grad_bias.defined()) grad_bias.zero_();
    return gradients;
  }
  if (!mask[0] && !mask[1] && !mask[2]) return gradients;
  const auto format = memory_format(input);
  const Tensor dy = grad_output.contiguous(format), x = input.contiguous(format);
  const Tensor m = mean.contiguous(), r = rstd.contiguous();
  BatchNormBackward op{};
  op.grad_output = dy.const_data_ptr();
  op.input = x.const_data_ptr();
  op.mean = m.const_data_ptr();
  op.rstd = r.const_data_ptr();
  op.weight = data_or_null(weight);
  op.grad_input = mutable_data_or_null(grad_input);
  op.grad_weight = mutable_data_or_null(grad_weight);
  op.grad_bias = mutable_data_or_null(grad_bias);
  op.shape = shape_of(input, format);
  op.training = training;
  op.dtype = dtype_of(input.scalar_type());
  op.param_dtype = dtype_of(param_type);
  run(op, input.device());
  return gradients;
}

void check_update(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean, const Tensor& var) {
  const auto channels = mean.sym_numel();
  check_size("running_mean", running_mean, channels);
  check_size("running_var", running_var, channels);
  check_size("var", var, channels);
  check_input_dtype("batch_norm_update_stats", running_mean);
  check_parameters("batch_norm_update_stats", running_mean, {{"running_var", running_var}});
  check_device("batch_norm_update_stats", "mean", mean, running_mean);
  check_device("batch_norm_update_stats", "var", var, running_mean);
  TORCH_CHECK(mean.scalar_type() == statistics_type(running_mean) && var.scalar_type() == mean.scalar_type(),
              "batch_norm_update_stats: expected mean and var of ", statistics_type(running_mean), ", but got ",
              mean.scalar_type(), " and ", var.scalar_type());
}

void update_stats_meta(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean, const Tensor& var,
                       c10::SymInt, double) {
  check_update(running_mean, running_var, mean, var);
}

void update_stats_kernel(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean, const Tensor& var,
                         int64_t count, double momentum) {
  check_update(running_mean, running_var, mean, var);
  TORCH_CHECK_VALUE(count > 1, "batch_norm_update_stats: expected count of more than 1, but got ", count);
  const Tensor m = mean.contiguous(), v = var.contiguous();
  const Tensor rm = running_mean.contiguous(), rv = running_var.contiguous();
  BatchNormUpdate op{};
  op.mean = m.const_data_ptr();
  op.var = v.const_data_ptr();
  op.running_mean = rm.mutable_data_ptr();
  op.running_var = rv.mutable_data_ptr();
  op.channels = mean.numel();
  op.count = count;
  op.momentum = momentum;
  op.dtype = dtype_of(running_mean.scalar_type());
  run(op, running_mean.device());
  if (!rm.is_same(running_mean)) running_mean.copy_(rm);
  if (!rv.is_same(running_var)) running_var.copy_(rv);
}

// ------------------------------------------------------------------------------------------------ calls through torch
Forward call_forward(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                     const MaybeTensor& weight, const MaybeTensor& bias, bool training, double eps) {
  static const auto op = operator_handle<decltype(forward_meta)>("normext::batch_norm_forward");
  return op.call(input, running_mean, running_var, weight, bias, training, eps);
}

Gradients call_backward(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& rstd,
                        const MaybeTensor& weight, bool training, double eps, Mask mask) {
  static const auto op = operator_handle<decltype(backward_meta)>("normext::batch_norm_backward");
  return op.call(grad_output, input, mean, rstd, weight, training, eps, mask);
}

// ------------------------------------------------------------------------------------------------ derivatives
struct BatchNormDerivative {
  static constexpr const char* kName = "BatchNormBackward";
  double eps;
  bool training;

  Gradients gradients(const Tensor& grad_output, const Saved& s, Mask mask) const {
    return call_backward(grad_output, s.input, s.mean, s.rstd, or_none(s.weight), training, eps, mask);
  }
  void collect(torch::dynamo::autograd::CompiledNodeArgs& args) const {
    args.collect(eps);
    args.collect(training);
  }
};

// The shape in which per-channel tensors broadcast against input.
std::vector<c10::SymInt> channel_shape(const Tensor& input) {
  std::vector<c10::SymInt> shape(input.dim(), 1);
  shape[input.dim() >= 2 ? 1 : 0] = channels_of(input);
  return shape;
}

Tensor per_channel(const Tensor& tensor, const Tensor& input) {
  return tensor.defined() ? tensor.view_symint(channel_shape(input)) : tensor;
}

Normalization normalization(const Tensor& input, const Tensor& mean, const Tensor& rstd, bool training, double eps) {
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

Forward forward_autograd(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                         const MaybeTensor& maybe_weight, const MaybeTensor& maybe_bias, bool training, double eps) {
  check_not_differentiated(running_mean, running_var, training);
  const auto forward = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward(input, running_mean, running_var, maybe_weight, maybe_bias, training, eps);
  };
  const Tensor weight = or_undefined(maybe_weight), bias = or_undefined(maybe_bias);
  if (!needs_autograd("batch_norm_forward", input, weight, bias)) return forward();
  const auto node = make_node(BatchNormDerivative{eps, training}, input, weight, bias);
  auto outputs = forward();
  const auto& [output, mean, rstd, var] = outputs;
  node->save({input, weight, mean, rstd});
  torch::autograd::set_history(output, node);
  return outputs;
}

Gradients backward_autograd(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& rstd,
                            const MaybeTensor& weight, bool training, double eps, Mask mask) {
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

// The buffers change: their version counters must say so, or a graph that saved them would not notice.
void update_stats_versions(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean, const Tensor& var,
                           c10::SymInt count, double momentum) {
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    update_batch_norm_statistics(running_mean, running_var, mean, var, std::move(count), momentum);
  }
  torch::autograd::increment_version(running_mean);
  torch::autograd::increment_version(running_var);
}

Tensor composite(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                 const MaybeTensor& weight, const MaybeTensor& bias, bool training, double momentum, double eps) {
  if (input.is_mkldnn())  // opaque to anybody but oneDNN, which torch hands it to
    return at::batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, false);
  const auto [output, mean, rstd, var] = call_forward(input, running_mean, running_var, weight, bias, training, eps);
  if (training && running_mean && !is_empty(input))
    update_batch_norm_statistics(*running_mean, *running_var, mean, var, input.sym_numel() / input.sym_size(1),
                                 momentum);
  return output;
}

void register_kernels(torch::Library& m) {
  m.impl("batch_norm_forward", forward_kernel);
  m.impl("batch_norm_backward", backward_kernel);
  m.impl("batch_norm_update_stats", update_stats_kernel);
}

}  // namespace

Tensor batch_norm(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                  const MaybeTensor& weight, const MaybeTensor& bias, bool training, double momentum, double eps) {
  static const auto op = operator_handle<decltype(batch_norm)>("normext::batch_norm");
  return op.call(input, running_mean, running_var, weight, bias, training, momentum, eps);
}

void update_batch_norm_statistics(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean,
                                  const Tensor& var, c10::SymInt count, double momentum) {
  static const auto op = operator_handle<decltype(update_stats_meta)>("normext::batch_norm_update_stats");
  op.call(running_mean, running_var, mean, var, std::move(count), momentum);
}

void check_not_differentiated(const MaybeTensor& running_mean, const MaybeTensor& running_var, bool training) {
  torch::autograd::check_no_requires_grad(running_mean, "running_mean", "batch_norm");
  torch::autograd::check_no_requires_grad(running_var, "running_var", "batch_norm");
  const auto has_tangent = [](const MaybeTensor& statistic) { return statistic && have_tangents(*statistic); };
  TORCH_CHECK(
      training || !(has_tangent(running_mean) || has_tangent(running_var)),
      "batch_norm is not differentiable wrt running_mean and running_var, they cannot have forward grad defined");
}

void check_batch_norm(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                      const MaybeTensor& weight, const MaybeTensor& bias, bool training, double, double eps) {
  check(input, {running_mean, running_var, weight, bias}, training, eps);
  check_not_differentiated(running_mean, running_var, training);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_forward_kernel(const Tensor& input,
                                                                     const MaybeTensor& running_mean,
                                                                     const MaybeTensor& running_var,
                                                                     const MaybeTensor& weight, const MaybeTensor& bias,
                                                                     bool training, double eps) {
  return forward_kernel(input, running_mean, running_var, weight, bias, training, eps);
}
Gradients batch_norm_backward_kernel(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                     const Tensor& rstd, const MaybeTensor& weight, bool training, double eps,
                                     Mask mask) {
  return backward_kernel(grad_output, input, mean, rstd, weight, training, eps, mask);
}
void batch_norm_update_stats_kernel(const Tensor& running_mean, const Tensor& running_var, const Tensor& mean,
                                    const Tensor& var, int64_t count, double momentum) {
  update_stats_kernel(running_mean, running_var, mean, var, count, momentum);
}

TORCH_LIBRARY_IMPL(normext, CompositeImplicitAutograd, m) {
  m.impl("batch_norm", composite);
  m.impl("check_batch_norm", check_batch_norm);
}
TORCH_LIBRARY_IMPL(normext, FuncTorchBatchedDecomposition, m) { m.impl("check_batch_norm", check_batch_norm); }
TORCH_LIBRARY_IMPL(normext, ADInplaceOrView, m) { m.impl("batch_norm_update_stats", update_stats_versions); }
TORCH_LIBRARY_IMPL(normext, Autograd, m) {
  m.impl("batch_norm_forward", forward_autograd);
  m.impl("batch_norm_backward", backward_autograd);
  m.impl("batch_norm_update_stats", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(normext, Meta, m) {
  m.impl("batch_norm_forward", forward_meta);
  m.impl("batch_norm_backward", backward_meta);
  m.impl("batch_norm_update_stats", update_stats_meta);
}
TORCH_LIBRARY_IMPL(normext, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(normext, CUDA, m) { register_kernels(m); }

}  // namespace normext
