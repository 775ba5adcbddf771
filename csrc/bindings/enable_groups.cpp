// enable_groups.cpp -- torch's operators for GroupNorm, computed by normext's kernels.
#include "enable.h"
#include "group_norm.h"

namespace normext {
namespace {

using GroupNorm = std::tuple<Tensor, Tensor, Tensor>;  // output, mean, rstd

// The sizes that torch's operators are given beside the input.
struct Sizes {
  int64_t batch, channels, rest, groups;
};

// What torch's kernels read, and so the format of what they return: a copy is made above them.
at::MemoryFormat format_of(const Tensor& input) {
  return input.is_cpu() ? input.suggest_memory_format() : at::MemoryFormat::Contiguous;
}

// Whether input has those sizes, and each parameter is one number for a channel. `type` becomes the parameters' dtype.
template <class... Tensors>
bool takes(const Tensor& input, const Sizes& sizes, at::ScalarType& type, const Tensors&... parameters) {
  const auto fits = [&](const MaybeTensor& t) {
    return !t || !t->defined() || (t->dim() == 1 && t->size(0) == sizes.channels);
  };
  return takes_dtype(input) && input.numel() > 0 && input.dim() >= 2 && input.size(0) == sizes.batch &&
         input.size(1) == sizes.channels && input.numel() == sizes.batch * sizes.channels * sizes.rest &&
         sizes.groups > 0 && sizes.channels % sizes.groups == 0 && input.is_contiguous(format_of(input)) &&
         (fits(parameters) && ...) && takes_parameters(input, type, parameters...);
}

// With few sizes a tensor is contiguous in several formats at once: strides become those of the one that torch takes.
Tensor in_format_of(const Tensor& input, Tensor result) {
  const auto format = format_of(input);
  if (result.defined() && result.suggest_memory_format() != format)
    result.unsafeGetTensorImpl()->empty_tensor_restride(format);
  return result;
}

GroupNorm native_group_norm(c10::DispatchKeySet keys, const Tensor& input, const MaybeTensor& weight,
                            const MaybeTensor& bias, int64_t batch, int64_t channels, int64_t rest, int64_t groups,
                            double eps) {
  at::ScalarType saved{};
  if (!takes(input, {batch, channels, rest, groups}, saved, weight, bias))
    return call_torch<&native_group_norm>(keys, input, weight, bias, batch, channels, rest, groups, eps);
  auto [output, mean, rstd, var] = group_norm_forward_kernel(input, groups, weight, bias, eps);
  return {in_format_of(input, std::move(output)), as_type(mean, saved), as_type(rstd, saved)};
}

Gradients native_group_norm_backward(c10::DispatchKeySet keys, const Tensor& grad_output, const Tensor& input,
                                     const Tensor& mean, const Tensor& rstd, const MaybeTensor& weight, int64_t batch,
                                     int64_t channels, int64_t rest, int64_t groups, Mask mask) {
  at::ScalarType parameters{};
  if (!takes(input, {batch, channels, rest, groups}, parameters, weight) || !takes_grad_output(input, grad_output) ||
      !takes_saved(input, mean, batch * groups) || !takes_saved(input, rstd, batch * groups))
    return call_torch<&native_group_norm_backward>(keys, grad_output, input, mean, rstd, weight, batch, channels, rest,
                                                   groups, mask);
  const auto type = statistics_type(input);
  auto [grad_input, grad_weight, grad_bias] =
      group_norm_backward_kernel(grad_output, input, groups, as_type(mean, type), as_type(rstd, type), weight, mask);
  if (!weight || !weight->defined()) parameters = mean.scalar_type();  // the bias's, which this operator is not given
  return {in_format_of(input, std::move(grad_input)), as_type(grad_weight, parameters), as_type(grad_bias, parameters)};
}

}  // namespace

std::vector<Replacement> replace_group_norms() {
  return {
      replace<&native_group_norm>("group_norm", "native_group_norm"),
      replace<&native_group_norm_backward>("group_norm", "native_group_norm_backward"),
  };
}

}  // namespace normext
