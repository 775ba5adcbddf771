// group_norm.cpp -- torch's side of GroupNorm and of InstanceNorm, which is GroupNorm with a channel to a group:
// argument checks, allocation, derivatives. InstanceNorm's running statistics are means over the batch.
#include "group_norm.h"

#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>

#include "batch_norm.h"
#include "double_backward.h"
#include "norm_node.h"

namespace normext {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // output, mean, rstd, var

// ------------------------------------------------------------------------------------------------ checks, allocation
// The numbers of channels and groups, in torch's words for what does not fit.
c10::SymInt check_groups(const Tensor& input, const c10::SymInt& num_groups) {
  TORCH_CHECK(input.dim() >= 2, "Expected at least 2 dimensions for input tensor but received ", input.dim());
  TORCH_CHECK(num_groups.is_symbolic() || num_groups > 0 || is_empty(input),
              "Expected num groups to be greater than 0, got ", num_groups);
  const auto channels = input.sym_size(1);
  TORCH_CHECK(num_groups.is_symbolic() || num_groups == 0 || expect_equal(channels % num_groups, 0),
              "Expected number of channels in input to be divisible by num_groups, but got input of shape ",
              input.sym_sizes(), " and num_groups=", num_groups);
  return channels;
}

void check_vector(const char* name, const Tensor& parameter, const Tensor& input) {
  TORCH_CHECK(!parameter.defined() || (parameter.dim() == 1 && expect_equal(parameter.sym_size(0), input.sym_size(1))),
              "Expected ", name, " to be a vector of size equal to the number of channels in input, but got ", name,
              " of shape ", parameter.sym_sizes(), " and input of shape ", input.sym_sizes());
}

// Returns the dtype of the parameters.
at::ScalarType check(const Tensor& input, const c10::SymInt& num_groups, const Tensor& weight, const Tensor& bias) {
  check_groups(input, num_groups);
  check_input_dtype("group_norm", input);
  check_vector("weight", weight, input);
  check_vector("bias", bias, input);
  return check_dtypes("group_norm", input, {{"weight", weight}, {"bias", bias}});
}

// A group of one value is normalized to zero, which torch's functions refuse. Its operators do not.
void check_values(const Tensor& input, const c10::SymInt& num_groups) {
  check_groups(input, num_groups);
  if (num_groups == 0) return;
  const auto sizes = input.sym_sizes();
  std::vector<c10::SymInt> shape = {sizes[0] * sizes[1] / num_groups, num_groups};
  shape.insert(shape.end(), sizes.begin() + 2, sizes.end());
  TORCH_CHECK_VALUE(expect_other(shape[0] * c10::multiply_integers(sizes.slice(2)), 1),
                    "Expected more than 1 value per channel when training, got input size ",
                    c10::SymIntArrayRef(shape));
}

void check_instances(const Tensor& input, const Tensor& running_mean, const Tensor& running_var, const Tensor& weight,
                     const Tensor& bias, bool use_input_stats) {
  const auto sizes = input.sym_sizes();
  if (use_input_stats) {
    TORCH_CHECK_VALUE(sizes.size() >= 2 && expect_other(c10::multiply_integers(sizes.slice(2)), 1),
                      "Expected more than 1 spatial element when training, got input size torch.Size(", sizes, ")");
    TORCH_CHECK_VALUE(running_mean.defined() == running_var.defined(),
                      "running_mean and running_var must either both be None or neither be None");
  } else {
    TORCH_CHECK(running_mean.defined() && running_var.defined(),
                "Expected running_mean and running_var to be defined when use_input_stats is false");
    TORCH_CHECK(sizes.size() >= 2, "Expected at least 2 dimensions for input tensor but received ", sizes.size());
  }
  check_input_dtype("instance_norm", input);
  check_size("running_mean", running_mean, sizes[1]);
  check_size("running_var", running_var, sizes[1]);
  check_size("weight", weight, sizes[1]);
  check_size("bias", bias, sizes[1]);
  check_dtypes("instance_norm", input,
               {{"weight", weight}, {"bias", bias}, {"running_mean", running_mean}, {"running_var", running_var}});
}

Forward allocate(const Tensor& input, const c10::SymInt& num_groups) {
  const auto array = [&, type = statistics_type(input)] { return empty(input, {input.sym_size(0), num_groups}, type); };
  return {allocate_like(input), array(), array(), array()};
}

Gradients allocate_gradients(const Tensor& input, at::ScalarType parameters, Mask mask) {
  const auto parameter = [&](bool wanted) { return wanted ? empty(input, input.sym_size(1), parameters) : Tensor{}; };
  return {mask[0] ? allocate_like(input) : Tensor{}, parameter(mask[1]), parameter(mask[2])};
}

// ------------------------------------------------------------------------------------------------ kernels and shapes
Forward forward_meta(const Tensor& input, c10::SymInt num_groups, const MaybeTensor& weight, const MaybeTensor& bias,
                     double, ActivationName activation, double slope) {
  activation_of("group_norm", activation, slope);
  check(input, num_groups, or_undefined(weight), or_undefined(bias));
  return allocate(input, num_groups);
}

Forward forward_kernel(const Tensor& input, int64_t num_groups, const MaybeTensor& maybe_weight,
                       const MaybeTensor& maybe_bias, double eps, ActivationName activation, double slope) {
  const Tensor weight = contiguous_or_undefined(or_undefined(maybe_weight));
  const Tensor bias = contiguous_or_undefined(or_undefined(maybe_bias));
  GroupNormForward op{};
  op.activation = activation_of("group_norm", activation, slope);
  const auto param_type = check(input, num_groups, weight, bias);
  auto outputs = allocate(input, num_groups);
  auto& [output, mean, rstd, var] = outputs;
  if (input.numel() == 0) {
    for (const Tensor& statistic : {mean, rstd, var}) statistic.zero_();
    return outputs;
  }
  const auto format = memory_format(input);
  const Tensor data = input.contiguous(format);
  op.input = data.const_data_ptr();
  op.weight = data_or_null(weight);
  op.bias = data_or_null(bias);
  op.output = output.mutable_data_ptr();
  op.mean = mean.mutable_data_ptr();
  op.rstd = rstd.mutable_data_ptr();
  op.var = var.mutable_data_ptr();
  op.shape = shape_of(input, format);
  op.groups = num_groups;
  op.eps = eps;
  op.dtype = dtype_of(input.scalar_type());
  op.param_dtype = dtype_of(param_type);
  run(op, input.device());
  return outputs;
}

// Returns the dtype of the parameters' gradients.
at::ScalarType check_backward(const Tensor& grad_output, const Tensor& input, const c10::SymInt& num_groups,
                              const Tensor& mean, const Tensor& rstd, const Tensor& weight, const Tensor& bias) {
  check(input, num_groups, weight, bias);
  check_device("group_norm_backward", "grad_output", grad_output, input);
  TORCH_CHECK(
      expect_equal(grad_output.sym_sizes(), input.sym_sizes()) && grad_output.scalar_type() == input.scalar_type(),
      "group_norm_backward: expected grad_output of input's shape and dtype, ", input.sym_sizes(), " and ",
      input.scalar_type(), ", but got ", grad_output.sym_sizes(), " and ", grad_output.scalar_type());
  const auto check_statistics = [&](const char* name, const Tensor& statistics) {
    check_device("group_norm_backward", name, statistics, input);
    TORCH_CHECK(expect_equal(statistics.sym_numel(), input.sym_size(0) * num_groups) &&
                    statistics.scalar_type() == statistics_type(input),
                "group_norm_backward: expected ", name, " as group_norm_forward returns it, one ",
                statistics_type(input), " per sample and group, but got ", statistics.sym_sizes(), " of ",
                statistics.scalar_type());
  };
  check_statistics("mean", mean);
  check_statistics("rstd", rstd);
  return gradient_type(input, weight.defined() ? weight : bias);
}

Gradients backward_meta(const Tensor& grad_output, const Tensor& input, c10::SymInt num_groups, const Tensor& mean,
                        const Tensor& rstd, const MaybeTensor& weight, const MaybeTensor& bias, double, Mask mask,
                        ActivationName activation, double slope) {
  activation_of("group_norm_backward", activation, slope);
  const auto type =
      check_backward(grad_output, input, num_groups, mean, rstd, or_undefined(weight), or_undefined(bias));
  return allocate_gradients(input, type, mask);
}

Gradients backward_kernel(const Tensor& grad_output, const Tensor& input, int64_t num_groups, const Tensor& mean,
                          const Tensor& rstd, const MaybeTensor& maybe_weight, const MaybeTensor& maybe_bias, double,
                          Mask mask, ActivationName activation, double slope) {
  const Tensor weight = contiguous_or_undefined(or_undefined(maybe_weight));
  const Tensor bias = contiguous_or_undefined(or_undefined(maybe_bias));
  GroupNormBackward op{};
  op.activation = activation_of("group_norm_backward", activation, slope);
  const auto param_type = check_backward(grad_output, input, num_groups, mean, rstd, weight, bias);
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
  op.grad_output = dy.const_data_ptr();
  op.input = x.const_data_ptr();
  op.mean = m.const_data_ptr();
  op.rstd = r.const_data_ptr();
  op.weight = data_or_null(weight);
  op.bias = data_or_null(bias);
  op.grad_input = mutable_data_or_null(grad_input);
  op.grad_weight = mutable_data_or_null(grad_weight);
  op.grad_bias = mutable_data_or_null(grad_bias);
  op.shape = shape_of(input, format);
  op.groups = num_groups;
  op.dtype = dtype_of(input.scalar_type());
  op.param_dtype = dtype_of(param_type);
  run(op, input.device());
  return gradients;
}

// ------------------------------------------------------------------------------------------------ calls through torch
Forward call_forward(const Tensor& input, const c10::SymInt& num_groups, const MaybeTensor& weight,
                     const MaybeTensor& bias, double eps, ActivationName activation, double slope) {
  static const auto op = operator_handle<decltype(forward_meta)>("normext::group_norm_forward");
  return op.call(input, num_groups, weight, bias, eps, activation, slope);
}

Gradients call_backward(const Tensor& grad_output, const Tensor& input, const c10::SymInt& num_groups,
                        const Tensor& mean, const Tensor& rstd, const MaybeTensor& weight, const MaybeTensor& bias,
                        double eps, Mask mask, ActivationName activation, double slope) {
  static const auto op = operator_handle<decltype(backward_meta)>("normext::group_norm_backward");
  return op.call(grad_output, input, num_groups, mean, rstd, weight, bias, eps, mask, activation, slope);
}

// ------------------------------------------------------------------------------------------------ derivatives
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
  const Tensor weight = or_undefined(maybe_weight), bias = or_undefined(maybe_bias);
  if (!needs_autograd("group_norm_forward", input, weight, bias)) return forward();
  const auto node = make_node(
      GroupNormDerivative{num_groups, eps, activation ? std::optional<std::string>(*activation) : std::nullopt, slope},
      input, weight, bias);
  auto outputs = forward();
  const auto& [output, mean, rstd, var] = outputs;
  node->save({input, weight, mean, rstd, activation ? bias : Tensor{}});
  torch::autograd::set_history(output, node);
  return outputs;
}

Gradients backward_autograd(const Tensor& grad_output, const Tensor& input, c10::SymInt num_groups, const Tensor& mean,
                            const Tensor& rstd, const MaybeTensor& maybe_weight, const MaybeTensor& maybe_bias,
                            double eps, Mask mask, ActivationName activation, double slope) {
  const Tensor weight = or_undefined(maybe_weight), bias = or_undefined(maybe_bias);
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

// ------------------------------------------------------------------------------------------------ public operators
Tensor group_norm_composite(const Tensor& input, int64_t num_groups, const MaybeTensor& weight, const MaybeTensor& bias,
                            double eps, ActivationName activation, double slope) {
  check_values(input, num_groups);
  return std::get<0>(call_forward(input, num_groups, weight, bias, eps, activation, slope));
}

Tensor instance_norm_composite(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                               const MaybeTensor& weight, const MaybeTensor& bias, bool use_input_stats,
                               double momentum, double eps, ActivationName activation, double slope) {
  check_instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, activation,
                      slope);
  if (!use_input_stats)
    return batch_norm(input, running_mean, running_var, weight, bias, false, momentum, eps, std::nullopt, activation,
                      slope);
  const auto flat_vector = [](const MaybeTensor& t) { return t ? MaybeTensor(t->flatten()) : t; };
  const auto [output, mean, rstd, var] =
      call_forward(input, input.sym_size(1), flat_vector(weight), flat_vector(bias), eps, activation, slope);
  if (running_mean && !is_empty(input))
    update_batch_norm_statistics(*running_mean, *running_var, mean.mean(0), var.mean(0),
                                 c10::multiply_integers(input.sym_sizes().slice(2)), momentum);
  return output;
}

// torch runs GroupNorm in float32 under CUDA's autocast.
Tensor group_norm_autocast_cuda(const Tensor& input, int64_t num_groups, const MaybeTensor& weight,
                                const MaybeTensor& bias, double eps, ActivationName activation, double slope) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCUDA);
  const auto cast = [](const auto& t) { return at::autocast::cached_cast(at::kFloat, t, at::kCUDA); };
  return group_norm(cast(input), num_groups, cast(weight), cast(bias), eps, activation, slope);
}

}  // namespace

Tensor group_norm(const Tensor& input, int64_t num_groups, const MaybeTensor& weight, const MaybeTensor& bias,
                  double eps, ActivationName activation, double slope) {
  static const auto op = operator_handle<decltype(group_norm)>("normext::group_norm");
  return op.call(input, num_groups, weight, bias, eps, activation, slope);
}

Tensor instance_norm(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                     const MaybeTensor& weight, const MaybeTensor& bias, bool use_input_stats, double momentum,
                     double eps, ActivationName activation, double slope) {
  static const auto op = operator_handle<decltype(instance_norm)>("normext::instance_norm");
  return op.call(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, activation, slope);
}

void check_group_norm(const Tensor& input, int64_t num_groups, const MaybeTensor& weight, const MaybeTensor& bias,
                      double, ActivationName activation, double slope) {
  activation_of("group_norm", activation, slope);
  check_values(input, num_groups);
  check(input, num_groups, or_undefined(weight), or_undefined(bias));
}

void check_instance_norm(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                         const MaybeTensor& weight, const MaybeTensor& bias, bool use_input_stats, double, double,
                         ActivationName activation, double slope) {
  activation_of("instance_norm", activation, slope);
  check_instances(input, or_undefined(running_mean), or_undefined(running_var), or_undefined(weight),
                  or_undefined(bias), use_input_stats);
  check_not_differentiated(running_mean, running_var, use_input_stats);
}

Forward group_norm_forward_kernel(const Tensor& input, int64_t num_groups, const MaybeTensor& weight,
                                  const MaybeTensor& bias, double eps) {
  return forward_kernel(input, num_groups, weight, bias, eps, std::nullopt, 0);
}
Gradients group_norm_backward_kernel(const Tensor& grad_output, const Tensor& input, int64_t num_groups,
                                     const Tensor& mean, const Tensor& rstd, const MaybeTensor& weight, Mask mask) {
  return backward_kernel(grad_output, input, num_groups, mean, rstd, weight, std::nullopt, 0, mask, std::nullopt, 0);
}

TORCH_LIBRARY_IMPL(normext, CompositeImplicitAutograd, m) {
  m.impl("group_norm", group_norm_composite);
  m.impl("instance_norm", instance_norm_composite);
  m.impl("check_group_norm", check_group_norm);
  m.impl("check_instance_norm", check_instance_norm);
}
TORCH_LIBRARY_IMPL(normext, FuncTorchBatchedDecomposition, m) {
  m.impl("check_group_norm", check_group_norm);
  m.impl("check_instance_norm", check_instance_norm);
}
TORCH_LIBRARY_IMPL(normext, AutocastCUDA, m) { m.impl("group_norm", group_norm_autocast_cuda); }
TORCH_LIBRARY_IMPL(normext, Autograd, m) {
  m.impl("group_norm_forward", forward_autograd);
  m.impl("group_norm_backward", backward_autograd);
}
TORCH_LIBRARY_IMPL(normext, Meta, m) {
  m.impl("group_norm_forward", forward_meta);
  m.impl("group_norm_backward", backward_meta);
}
TORCH_LIBRARY_IMPL(normext, CPU, m) {
  m.impl("group_norm_forward", forward_kernel);
  m.impl("group_norm_backward", backward_kernel);
}
TORCH_LIBRARY_IMPL(normext, CUDA, m) {
  m.impl("group_norm_forward", forward_kernel);
  m.impl("group_norm_backward", backward_kernel);
}

}  // namespace normext
