// group_norm.cpp -- the public operators of GroupNorm, and of InstanceNorm, which is GroupNorm with a channel to a
// group and running statistics that are means over the batch.
#include "group_norm.h"

#include <ATen/autocast_mode.h>

#include "batch_norm.h"
#include "group_norm_operators.h"

namespace normext {
namespace {

// A group of one value is normalized to zero, which torch's functions refuse. Its operators do not.
void check_values(const Tensor& input, const c10::SymInt& num_groups) {
  group_norms::check_groups(input, num_groups);
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

Tensor group_norm_composite(const Tensor& input, int64_t num_groups, const MaybeTensor& weight, const MaybeTensor& bias,
                            double eps, ActivationName activation, double slope) {
  check_values(input, num_groups);
  return std::get<0>(group_norms::call_forward(input, num_groups, weight, bias, eps, activation, slope));
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
  const auto [output, mean, rstd, var] = group_norms::call_forward(input, input.sym_size(1), flat_vector(weight),
                                                                   flat_vector(bias), eps, activation, slope);
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
  group_norms::check(input, num_groups, or_undefined(weight), or_undefined(bias));
}

void check_instance_norm(const Tensor& input, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                         const MaybeTensor& weight, const MaybeTensor& bias, bool use_input_stats, double, double,
                         ActivationName activation, double slope) {
  activation_of("instance_norm", activation, slope);
  check_instances(input, or_undefined(running_mean), or_undefined(running_var), or_undefined(weight),
                  or_undefined(bias), use_input_stats);
  check_not_differentiated(running_mean, running_var, use_input_stats);
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
}  // namespace normext
