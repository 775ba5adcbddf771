// enable.h -- kernels of normext's at torch's own norm operators: what each of them needs, and the one table of them.
#pragma once
#include <ATen/core/boxing/KernelFunction.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <vector>

#include "common.h"

namespace normext {

// The names of all norms that torch's operators can be replaced for, and of those that they are now.
std::vector<std::string> replaceable_norms();
std::vector<std::string> enabled_norms();

// Puts normext's kernels at torch's operators for these norms, and for no others. Other threads may compute meanwhile.
void set_enabled_norms(const std::vector<std::string>& norms);
bool is_enabled(const char* norm);

enum class Where : uint8_t { nowhere = 0, cpu = 1, cuda = 2, both = 3 };

// One of torch's operators, and our kernel for it.
struct Replacement {
  const char *norm, *name, *overload;
  Where where;
  // Where the kernel stays once it has been enabled, as what our forward kernel saved torch has no backward kernel for.
  Where stays;
  void (*capture)(const c10::OperatorHandle&, c10::DispatchKey);
  torch::CppFunction (*kernel)();
};

// The kernels that the operator has without ours, for the CPU and for CUDA. They are set before ours can be called.
template <auto kOurs>
inline std::array<std::optional<c10::SafeKernelFunction>, 2> replaced;

// What torch computes, or the error it raises, for what kOurs does not take. `keys` is what kOurs was called with.
template <auto kOurs, class... Args>
auto call_torch(c10::DispatchKeySet keys, const Args&... args) {
  using Result = typename c10::guts::function_traits<std::remove_pointer_t<decltype(kOurs)>>::return_type;
  const auto& kernel = replaced<kOurs>[keys.highestPriorityTypeId() == c10::DispatchKey::CUDA];
  TORCH_CHECK_NOT_IMPLEMENTED(kernel, "normext's kernel does not take these arguments, and torch has none for them");
  torch::jit::Stack stack;
  torch::jit::push(stack, args...);
  kernel->callBoxed(kernel->opHandle(), keys, &stack);
  return c10::impl::PopResult<Result>::call(stack);
}

// The kernel is a constant of its type: the dispatcher then keeps no state for it that a call could find half replaced.
template <auto kOurs>
Replacement replace(const char* norm, const char* name, const char* overload = "", Where where = Where::both,
                    Where stays = Where::nowhere) {
  const auto capture = [](const c10::OperatorHandle& op, c10::DispatchKey key) {
    auto& kernel = replaced<kOurs>[key == c10::DispatchKey::CUDA];
    if (!kernel && op.hasComputedKernelForDispatchKey(key)) kernel.emplace(op.getComputedKernelForDispatchKey(key));
  };
  const auto kernel = [] {
    return torch::CppFunction(c10::CompileTimeFunctionPointer<std::remove_pointer_t<decltype(kOurs)>, kOurs>());
  };
  return {norm, name, overload, where, stays, capture, kernel};
}

std::vector<Replacement> replace_row_norms();
std::vector<Replacement> replace_channel_norms();
std::vector<Replacement> replace_group_norms();

// ------------------------------------------------------------------------------------------------ what kernels take
inline bool takes_dtype(const Tensor& input) {
  const auto type = input.scalar_type();
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble;
}

// Whether parameters, any of which may be missing, share input's device and one dtype: input's, or float32 beside a
// half input. `type` becomes that dtype; input's where there is none.
template <class... Tensors>
bool takes_parameters(const Tensor& input, at::ScalarType& type, const Tensors&... parameters) {
  std::optional<at::ScalarType> shared;
  const auto takes = [&](const MaybeTensor& parameter) {
    if (!parameter || !parameter->defined()) return true;
    if (!shared) shared = parameter->scalar_type();
    return parameter->scalar_type() == *shared && parameter->device() == input.device();
  };
  if (!(takes(parameters) && ...)) return false;
  type = shared.value_or(input.scalar_type());
  return type == input.scalar_type() || (type == at::kFloat && input.scalar_type() != at::kDouble);
}

// The dtype of the statistics that torch saves for backward: on the CPU its parameters'.
inline at::ScalarType saved_type(const Tensor& input, at::ScalarType parameters) {
  return input.is_cpu() ? parameters : statistics_type(input);
}

// The tensor, which may be undefined, in that dtype.
Tensor as_type(const Tensor& tensor, at::ScalarType type);

// 1 / sqrt(var + eps)
Tensor rstd_of(const Tensor& var, double eps);

// Saved statistics as the kernels read them, one for each row or channel, of whatever dtype.
inline bool takes_saved(const Tensor& input, const Tensor& saved, int64_t count) {
  return saved.defined() && saved.numel() == count && saved.device() == input.device() && takes_dtype(saved);
}
inline bool takes_grad_output(const Tensor& input, const Tensor& grad_output) {
  return grad_output.defined() && grad_output.sizes() == input.sizes() && grad_output.device() == input.device() &&
         grad_output.scalar_type() == input.scalar_type();
}

}  // namespace normext
