// group_norm_kernels.cpp -- GroupNorm's argument checks, allocation, and its kernels as operators.
#include "group_norm.h"
#include "group_norm_operators.h"

namespace normext {
namespace group_norms {

// ------------------------------------------------------------------------------------------------ checks
void check_groups(const Tensor& input, const c10::SymInt& num_groups) {
  TORCH_CHECK(input.dim() >= 2, "Expected at least 2 dimensions for input tensor but received ", input.dim());
  TORCH_CHECK(num_groups.is_symbolic() || num_groups > 0 || is_empty(input),
              "Expected num groups to be greater than 0, got ", num_groups);
  TORCH_CHECK(num_groups.is_symbolic() || num_groups == 0 || expect_equal(input.sym_size(1) % num_groups, 0),
              "Expected number of channels in input to be divisible by num_groups, but got input of shape ",
              input.sym_sizes(), " and num_groups=", num_groups);
}

static void check_vector(const char* name, const Tensor& parameter, const Tensor& input) {
  TORCH_CHECK(!parameter.defined() || (parameter.dim() == 1 && expect_equal(parameter.sym_size(0), input.sym_size(1))),
              "Expected ", name, " to be a vector of size equal to the number of channels in input, but got ", name,
              " of shape ", parameter.sym_sizes(), " and input of shape ", input.sym_sizes());
}

at::ScalarType check(const Tensor& input, const c10::SymInt& num_groups, const Tensor& weight, const Tensor& bias) {
  check_groups(input, num_groups);
  check_input_dtype("group_norm", input);
  check_vector("weight", weight, input);
  check_vector("bias", bias, input);
  return check_dtypes("group_norm", input, {{"weight", weight}, {"bias", bias}});
}

at::ScalarType check_backward(const Tensor& grad_output, const Tensor& input, const c10::SymInt& num_groups,
                              const Tensor& mean, const Tensor& rstd, const Tensor& weight, const Tensor& bias) {
  check(input, num_groups, weight, bias);
  check_grad_output("group_norm_backward", grad_output, input);
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

// ------------------------------------------------------------------------------------------------ allocation
static Forward allocate(const Tensor& input, const c10::SymInt& num_groups) {
  const auto array = [&, type = statistics_type(input)] { return empty(input, {input.sym_size(0), num_groups}, type); };
  return {allocate_like(input), array(), array(), array()};
}

static Gradients allocate_gradients(const Tensor& input, at::ScalarType parameters, Mask mask) {
  const auto parameter = [&](bool wanted) { return wanted ? empty(input, input.sym_size(1), parameters) : Tensor{}; };
  return {mask[0] ? allocate_like(input) : Tensor{}, parameter(mask[1]), parameter(mask[2])};
}

Forward forward_meta(const Tensor& input, c10::SymInt num_groups, const MaybeTensor& weight, const MaybeTensor& bias,
                     double, ActivationName activation, double slope) {
  activation_of("group_norm", activation, slope);
  check(input, num_groups, or_undefined(weight), or_undefined(bias));
  return allocate(input, num_groups);
}

Gradients backward_meta(const Tensor& grad_output, const Tensor& input, c10::SymInt num_groups, const Tensor& mean,
                        const Tensor& rstd, const MaybeTensor& weight, const MaybeTensor& bias, double, Mask mask,
                        ActivationName activation, double slope) {
  activation_of("group_norm_backward", activation, slope);
  const auto type =
      check_backward(grad_output, input, num_groups, mean, rstd, or_undefined(weight), or_undefined(bias));
  return allocate_gradients(input, type, mask);
}

// ------------------------------------------------------------------------------------------------ kernels
static Forward forward_kernel(const Tensor& input, int64_t num_groups, const MaybeTensor& maybe_weight,
                              const MaybeTensor& maybe_bias, double eps, ActivationName activation, double slope) {
  const auto weight = contiguous_or_undefined(or_undefined(maybe_weight));
  const auto bias = contiguous_or_undefined(or_undefined(maybe_bias));
  GroupNormForward op{};
  op.activation = activation_of("group_norm", activation, slope);
  const auto param_type = check(input, num_groups, *weight, *bias);
  auto outputs = allocate(input, num_groups);
  auto& [output, mean, rstd, var] = outputs;
  if (input.numel() == 0) {
    for (const Tensor& statistic : {mean, rstd, var}) statistic.zero_();
    return outputs;
  }
  const auto format = memory_format(input);
  const auto data = input.expect_contiguous(format);
  op.input = data->const_data_ptr();
  op.weight = data_or_null(*weight);
  op.bias = data_or_null(*bias);
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

static Gradients backward_kernel(const Tensor& grad_output, const Tensor& input, int64_t num_groups, const Tensor& mean,
                                 const Tensor& rstd, const MaybeTensor& maybe_weight, const MaybeTensor& maybe_bias,
                                 double, Mask mask, ActivationName activation, double slope) {
  const auto weight = contiguous_or_undefined(or_undefined(maybe_weight));
  const auto bias = contiguous_or_undefined(or_undefined(maybe_bias));
  GroupNormBackward op{};
  op.activation = activation_of("group_norm_backward", activation, slope);
  const auto param_type = check_backward(grad_output, input, num_groups, mean, rstd, *weight, *bias);
  auto gradients = allocate_gradients(input, param_type, mask);
  auto& [grad_input, grad_weight, grad_bias] = gradients;
  if (input.numel() == 0) {
    if (grad_weight.defined()) grad_weight.zero_();
    if (grad_bias.defined()) grad_bias.zero_();
    return gradients;
  }
  if (!mask[0] && !mask[1] && !mask[2]) return gradients;
  const auto format = memory_format(input);
  const auto dy = grad_output.expect_contiguous(format), x = input.expect_contiguous(format);
  const auto m = mean.expect_contiguous(), r = rstd.expect_contiguous();
  op.grad_output = dy->const_data_ptr();
  op.input = x->const_data_ptr();
  op.mean = m->const_data_ptr();
  op.rstd = r->const_data_ptr();
  op.weight = data_or_null(*weight);
  op.bias = data_or_null(*bias);
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

}  // namespace group_norms

std::tuple<Tensor, Tensor, Tensor, Tensor> group_norm_forward_kernel(const Tensor& input, int64_t num_groups,
                                                                     const MaybeTensor& weight, const MaybeTensor& bias,
                                                                     double eps) {
  return group_norms::forward_kernel(input, num_groups, weight, bias, eps, std::nullopt, 0);
}
Gradients group_norm_backward_kernel(const Tensor& grad_output, const Tensor& input, int64_t num_groups,
                                     const Tensor& mean, const Tensor& rstd, const MaybeTensor& weight, Mask mask) {
  return group_norms::backward_kernel(grad_output, input, num_groups, mean, rstd, weight, std::nullopt, 0, mask,
                                      std::nullopt, 0);
}

static void register_kernels(torch::Library& m) {
  m.impl("group_norm_forward", group_norms::forward_kernel);
  m.impl("group_norm_backward", group_norms::backward_kernel);
}

TORCH_LIBRARY_IMPL(normext, Meta, m) {
  m.impl("group_norm_forward", group_norms::forward_meta);
  m.impl("group_norm_backward", group_norms::backward_meta);
}
TORCH_LIBRARY_IMPL(normext, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(normext, CUDA, m) { register_kernels(m); }

}  // namespace normext
