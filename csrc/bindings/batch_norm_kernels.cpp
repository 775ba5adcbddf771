// batch_norm_kernels.cpp -- BatchNorm's argument checks, allocation, and its kernels as operators.
#include "batch_norm.h"
#include "batch_norm_operators.h"

namespace normext {
namespace batch_norms {

// ------------------------------------------------------------------------------------------------ checks
c10::SymInt channels_of(const Tensor& input) {
  TORCH_CHECK(input.dim() >= 2 || is_empty(input),
              "batch_norm: expected input of at least 2 dimensions, [N, C, *], but got input of size ",
              input.sym_sizes());
  return input.dim() >= 2 ? input.sym_size(1) : 0;
}

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
  if (a.residual.defined()) check_residual("batch_norm", a.residual, input, false);
  return check_dtypes(
      "batch_norm", input,
      {{"weight", a.weight}, {"bias", a.bias}, {"running_mean", a.running_mean}, {"running_var", a.running_var}});
}

at::ScalarType check_backward(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& rstd,
                              const Tensor& weight, const Tensor& bias, const Tensor& residual) {
  const auto channels = channels_of(input);
  check_input_dtype("batch_norm_backward", input);
  check_grad_output("batch_norm_backward", grad_output, input);
  check_device("batch_norm_backward", "mean", mean, input);
  check_device("batch_norm_backward", "rstd", rstd, input);
  const auto check_statistics = [&](const char* name, const Tensor& statistics) {
    TORCH_CHECK(expect_equal(statistics.sym_numel(), channels) && statistics.scalar_type() == statistics_type(input),
                "batch_norm_backward: expected ", name, " as batch_norm_forward returns it, one ",
                statistics_type(input), " per channel, but got ", statistics.sym_sizes(), " of ",
                statistics.scalar_type());
  };
  check_statistics("mean", mean);
  check_statistics("rstd", rstd);
  check_size("weight", weight, channels);
  check_size("bias", bias, channels);
  if (residual.defined()) check_residual("batch_norm_backward", residual, input, false);
  check_dtypes("batch_norm_backward", input, {{"weight", weight}, {"bias", bias}});
  return gradient_type(input, weight.defined() ? weight : bias);
}

// ------------------------------------------------------------------------------------------------ allocation
static Forward allocate(const Tensor& input, bool training) {
  const auto array = [&, type = statistics_type(input)](c10::SymInt size) { return empty(input, size, type); };
  const auto channels = channels_of(input);
  return {allocate_like(input), array(channels), array(channels), array(training ? channels : 0)};
}

static WithResidual allocate_gradients(const Tensor& input, at::ScalarType parameters, ResidualMask mask) {
  const auto data = [&](bool wanted) { return wanted ? allocate_like(input) : Tensor{}; };
  const auto parameter = [&](bool wanted) { return wanted ? empty(input, channels_of(input), parameters) : Tensor{}; };
  return {data(mask[0]), parameter(mask[1]), parameter(mask[2]), data(mask[3])};
}

Forward forward_meta(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                     const MaybeTensor& weight, const MaybeTensor& bias, bool training, double eps,
                     const MaybeTensor& residual, ActivationName activation, double slope) {
  activation_of("batch_norm", activation, slope);
  check(input, {running_mean, running_var, weight, bias, residual}, training, eps);
  return allocate(input, training);
}

Gradients backward_meta(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& rstd,
                        const MaybeTensor& weight, bool, double, Mask mask) {
  const auto type = check_backward(grad_output, input, mean, rstd, or_undefined(weight));
  auto [grad_input, grad_weight, grad_bias, none] = allocate_gradients(input, type, {mask[0], mask[1], mask[2], false});
  return {std::move(grad_input), std::move(grad_weight), std::move(grad_bias)};
}

WithResidual activation_backward_meta(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                      const Tensor& rstd, const MaybeTensor& weight, const MaybeTensor& bias,
                                      const MaybeTensor& residual, bool, double, ResidualMask mask,
                                      std::string_view activation, double slope) {
  activation_of("batch_norm_activation_backward", activation, slope);
  const auto type =
      check_backward(grad_output, input, mean, rstd, or_undefined(weight), or_undefined(bias), or_undefined(residual));
  return allocate_gradients(input, type, mask);
}

// ------------------------------------------------------------------------------------------------ kernels
static Forward forward_kernel(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                              const MaybeTensor& weight, const MaybeTensor& bias, bool training, double eps,
                              const MaybeTensor& residual, ActivationName activation, double slope) {
  const Arguments a(running_mean, running_var, weight, bias, residual);
  BatchNormForward op{};
  op.activation = activation_of("batch_norm", activation, slope);
  const auto param_type = check(input, a, training, eps);
  auto outputs = allocate(input, training);
  auto& [output, mean, rstd, var] = outputs;
  if (input.numel() == 0) {  // a batch of nothing has no statistics
    for (const Tensor& statistic : {mean, rstd, var}) statistic.zero_();
    return outputs;
  }
  const auto format = memory_format(input);
  const auto data = input.expect_contiguous(format), residuals = contiguous_or_undefined(a.residual, format);
  const auto means = contiguous_or_undefined(a.running_mean), vars = contiguous_or_undefined(a.running_var);
  const auto weights = contiguous_or_undefined(a.weight), biases = contiguous_or_undefined(a.bias);
  op.input = data->const_data_ptr();
  op.weight = data_or_null(*weights);
  op.bias = data_or_null(*biases);
  op.residual = data_or_null(*residuals);
  op.output = output.mutable_data_ptr();
  op.mean = mean.mutable_data_ptr();
  op.rstd = rstd.mutable_data_ptr();
  if (training) {
    op.var = var.mutable_data_ptr();
  } else {
    op.running_mean = means->const_data_ptr();
    op.running_var = vars->const_data_ptr();
  }
  op.shape = shape_of(input, format);
  op.eps = eps;
  op.dtype = dtype_of(input.scalar_type());
  op.param_dtype = dtype_of(param_type);
  run(op, input.device());
  return outputs;
}

// The kernel of both backward operators. grad_residual is asked for where there is an activation only.
static WithResidual run_backward(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& rstd,
                                 const Tensor& weight, const Tensor& bias, const Tensor& residual, bool training,
                                 ResidualMask mask, const Activation& activation) {
  const auto param_type = check_backward(grad_output, input, mean, rstd, weight, bias, residual);
  WithResidual gradients = allocate_gradients(input, param_type, mask);
  auto& [grad_input, grad_weight, grad_bias, grad_residual] = gradients;
  if (input.numel() == 0) {
    if (grad_weight.defined()) grad_weight.zero_();
    if (grad_bias.defined()) grad_bias.zero_();
    return gradients;
  }
  if (mask == ResidualMask{}) return gradients;
  const auto format = memory_format(input);
  const auto dy = grad_output.expect_contiguous(format), x = input.expect_contiguous(format);
  const auto m = mean.expect_contiguous(), r = rstd.expect_contiguous();
  const auto weights = contiguous_or_undefined(weight), biases = contiguous_or_undefined(bias);
  const auto residuals = contiguous_or_undefined(residual, format);
  BatchNormBackward op{};
  op.grad_output = dy->const_data_ptr();
  op.input = x->const_data_ptr();
  op.mean = m->const_data_ptr();
  op.rstd = r->const_data_ptr();
  op.weight = data_or_null(*weights);
  op.grad_input = mutable_data_or_null(grad_input);
  op.grad_weight = mutable_data_or_null(grad_weight);
  op.grad_bias = mutable_data_or_null(grad_bias);
  op.shape = shape_of(input, format);
  op.training = training;
  op.dtype = dtype_of(input.scalar_type());
  op.param_dtype = dtype_of(param_type);
  op.bias = data_or_null(*biases);
  op.residual = data_or_null(*residuals);
  op.grad_residual = mutable_data_or_null(grad_residual);
  op.activation = activation;
  run(op, input.device());
  return gradients;
}

static Gradients backward_kernel(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& rstd,
                                 const MaybeTensor& weight, bool training, double, Mask mask) {
  auto [grad_input, grad_weight, grad_bias, none] = run_backward(
      grad_output, input, mean, rstd, or_undefined(weight), {}, {}, training, {mask[0], mask[1], mask[2], false}, {});
  return {std::move(grad_input), std::move(grad_weight), std::move(grad_bias)};
}

static WithResidual activation_backward_kernel(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                               const Tensor& rstd, const MaybeTensor& weight, const MaybeTensor& bias,
                                               const MaybeTensor& residual, bool training, double, ResidualMask mask,
                                               std::string_view activation, double slope) {
  return run_backward(grad_output, input, mean, rstd, or_undefined(weight), or_undefined(bias), or_undefined(residual),
                      training, mask, activation_of("batch_norm_activation_backward", activation, slope));
}

}  // namespace batch_norms

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_forward_kernel(const Tensor& input,
                                                                     const MaybeTensor& running_mean,
                                                                     const MaybeTensor& running_var,
                                                                     const MaybeTensor& weight, const MaybeTensor& bias,
                                                                     bool training, double eps) {
  return batch_norms::forward_kernel(input, running_mean, running_var, weight, bias, training, eps, std::nullopt,
                                     std::nullopt, 0);
}
Gradients batch_norm_backward_kernel(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                     const Tensor& rstd, const MaybeTensor& weight, bool training, double eps,
                                     Mask mask) {
  return batch_norms::backward_kernel(grad_output, input, mean, rstd, weight, training, eps, mask);
}

static void register_kernels(torch::Library& m) {
  m.impl("batch_norm_forward", batch_norms::forward_kernel);
  m.impl("batch_norm_backward", batch_norms::backward_kernel);
  m.impl("batch_norm_activation_backward", batch_norms::activation_backward_kernel);
}

TORCH_LIBRARY_IMPL(normext, Meta, m) {
  m.impl("batch_norm_forward", batch_norms::forward_meta);
  m.impl("batch_norm_backward", batch_norms::backward_meta);
  m.impl("batch_norm_activation_backward", batch_norms::activation_backward_meta);
}
TORCH_LIBRARY_IMPL(normext, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(normext, CUDA, m) { register_kernels(m); }

}  // namespace normext
