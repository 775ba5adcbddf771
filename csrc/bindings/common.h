// common.h -- what the bindings of every norm share. This folder is the only one that knows torch.
#pragma once
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>

#include "cpu/isa.h"
#include "cuda.h"
#include "ops/types.h"

namespace normext {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Mask = std::array<bool, 3>;                      // which of grad_input, grad_weight and grad_bias are asked for
using Gradients = std::tuple<Tensor, Tensor, Tensor>;  // of input, weight and bias

inline const Tensor& or_undefined(const MaybeTensor& tensor) {
  static const Tensor undefined;
  return tensor ? *tensor : undefined;
}
inline MaybeTensor or_none(const Tensor& tensor) { return tensor.defined() ? MaybeTensor(tensor) : std::nullopt; }

// Statistics are kept in float64 for float64 inputs, in float32 for all others.
inline at::ScalarType statistics_type(const Tensor& input) {
  return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// A backward operator's gradients of weight and bias have the weight's dtype. Where there is none a bias may have
// either dtype: it is the wider one, which autograd rounds to the bias's.
inline at::ScalarType gradient_type(const Tensor& input, const Tensor& weight) {
  return weight.defined() ? weight.scalar_type() : statistics_type(input);
}

DType dtype_of(at::ScalarType type);
bool is_half(at::ScalarType type);

// Whether sizes are equal, or are not. Of sizes that only the data will tell (torch.export's unbacked ones) it is taken
// for granted, and asserted when the program runs.
bool expect_equal(const c10::SymInt& a, const c10::SymInt& b);
bool expect_equal(c10::SymIntArrayRef a, c10::SymIntArrayRef b);
bool expect_other(const c10::SymInt& a, const c10::SymInt& b);

inline bool is_one(const c10::SymInt& size) { return TORCH_GUARD_OR_FALSE(size.sym_eq(1)); }

// Throws what torch throws for a dtype that `op` does not take.
void check_input_dtype(const char* op, const Tensor& input);

// Throws what torch throws unless the tensor, which may be undefined, is on the same device as input: kernels are
// handed pointers, which do not tell.
void check_device(const char* op, const char* name, const Tensor& tensor, const Tensor& input);

// Throws unless a residual is of input's shape, device and dtype, or of float32 beside a half type where it may be
// wider.
void check_residual(const char* op, const Tensor& residual, const Tensor& input, bool may_be_wider);

struct Parameter {
  const char* name;
  const Tensor& tensor;  // may be undefined
};

// Parameters share a device with the input and a dtype with each other: input_type, or float32 where that is a half
// type. Returns that dtype; input_type where there is no parameter.
at::ScalarType check_parameters(const char* op, const Tensor& input, at::ScalarType input_type,
                                at::ArrayRef<Parameter> parameters);
at::ScalarType check_parameters(const char* op, const Tensor& input, at::ArrayRef<Parameter> parameters);

// An uninitialized tensor on input's device. On the CPU it does not go through torch's dispatcher, which costs a small
// norm a tenth of its time, unless memory may have to be filled there: see torch.utils.deterministic.
inline Tensor empty(const Tensor& input, c10::SymIntArrayRef sizes, at::ScalarType dtype,
                    at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  if (input.is_cpu() && !at::globalContext().deterministicAlgorithms())
    return at::detail::empty_cpu(C10_AS_INTARRAYREF_SLOW(sizes), dtype, /*pin_memory=*/false, format);
  return at::empty_symint(sizes, input.options().dtype(dtype), format);
}

inline const void* data_or_null(const Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }
inline void* mutable_data_or_null(const Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr() : nullptr;
}
inline c10::MaybeOwned<Tensor> contiguous_or_undefined(const Tensor& tensor,
                                                       at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  return tensor.defined() ? tensor.expect_contiguous(format) : c10::MaybeOwned<Tensor>::borrowed(tensor);
}

// Runs an op of csrc/ops on the device its tensors are on.
template <class Op>
void run(const Op& op, at::Device device) {
  if (device.is_cuda()) return run_on_cuda(op, device);
  cpu::run(op, at::in_parallel_region() ? 1 : at::get_num_threads());
}

// torch.ops.normext.<name>, called through torch's dispatcher; Signature is the C++ type of its kernels.
template <class Signature>
c10::TypedOperatorHandle<Signature> operator_handle(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline Mask saved_mask(torch::autograd::AutogradContext* ctx) {
  const auto mask = ctx->saved_data["mask"].toBoolList();
  return {mask[0], mask[1], mask[2]};
}

// An autograd function cannot return undefined tensors: gradients nobody asked for are left out of its outputs, and
// spread() puts outputs, or the gradients of those, back in their places.
inline torch::autograd::variable_list only_defined(const std::tuple<Tensor, Tensor, Tensor>& gradients) {
  torch::autograd::variable_list defined;
  std::apply([&](const auto&... t) { ((t.defined() ? defined.push_back(t) : void()), ...); }, gradients);
  return defined;
}
inline std::array<Tensor, 3> spread(const torch::autograd::variable_list& defined, const Mask& mask) {
  std::array<Tensor, 3> gradients;
  size_t next = 0;
  for (size_t i = 0; i < mask.size(); ++i)
    if (mask[i]) gradients[i] = defined[next++];
  return gradients;
}

template <class... Tensors>
bool have_tangents(const Tensors&... tensors) {
  return ((tensors.defined() && tensors._fw_grad(/*level=*/0).defined()) || ...);
}

// Whether calling an op on these tensors must record a derivative. Forward-mode tangents are refused rather than
// dropped: the op's caller in Python takes normext/transforms.py for them.
template <class... Tensors>
bool needs_autograd(const char* op, const Tensors&... tensors) {
  TORCH_CHECK_NOT_IMPLEMENTED(!have_tangents(tensors...), op,
                              " does not support forward-mode AD: expected tensors without tangents; "
                              "normext's functions and modules take them");
  return at::GradMode::is_enabled() && ((tensors.defined() && tensors.requires_grad()) || ...);
}

}  // namespace normext
