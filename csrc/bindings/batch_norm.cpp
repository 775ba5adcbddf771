// batch_norm.cpp -- BatchNorm's public operator, and its running statistics.
#include "batch_norm.h"

#include <torch/csrc/autograd/VariableTypeUtils.h>

#include "batch_norm_operators.h"

namespace normext {
namespace {

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
                 const MaybeTensor& weight, const MaybeTensor& bias, bool training, double momentum, double eps,
                 const MaybeTensor& residual, ActivationName activation, double slope) {
  if (input.is_mkldnn()) {  // opaque to anybody but oneDNN, which torch hands it to
    const Activation following = activation_of("batch_norm", activation, slope);
    const Tensor z = at::batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, false);
    return activated(residual ? z + *residual : z, following);
  }
  const auto [output, mean, rstd, var] = batch_norms::call_forward(input, running_mean, running_var, weight, bias,
                                                                   training, eps, residual, activation, slope);
  if (training && running_mean && !is_empty(input))
    update_batch_norm_statistics(*running_mean, *running_var, mean, var, input.sym_numel() / input.sym_size(1),
                                 momentum);
  return output;
}

}  // namespace

Tensor batch_norm(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                  const MaybeTensor& weight, const MaybeTensor& bias, bool training, double momentum, double eps,
                  const MaybeTensor& residual, ActivationName activation, double slope) {
  static const auto op = operator_handle<decltype(batch_norm)>("normext::batch_norm");
  return op.call(input, running_mean, running_var, weight, bias, training, momentum, eps, residual, activation, slope);
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
                      const MaybeTensor& weight, const MaybeTensor& bias, bool training, double, double eps,
                      const MaybeTensor& residual, ActivationName activation, double slope) {
  activation_of("batch_norm", activation, slope);
  batch_norms::check(input, {running_mean, running_var, weight, bias, residual}, training, eps);
  check_not_differentiated(running_mean, running_var, training);
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
TORCH_LIBRARY_IMPL(normext, Autograd, m) { m.impl("batch_norm_update_stats", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(normext, Meta, m) { m.impl("batch_norm_update_stats", update_stats_meta); }
TORCH_LIBRARY_IMPL(normext, CPU, m) { m.impl("batch_norm_update_stats", update_stats_kernel); }
TORCH_LIBRARY_IMPL(normext, CUDA, m) { m.impl("batch_norm_update_stats", update_stats_kernel); }

}  // namespace normext
