#include "common.h"

#include <c10/util/Exception.h>

#include <algorithm>

namespace normext {

DType dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return DType::float64;
    case at::kFloat:
      return DType::float32;
    case at::kBFloat16:
      return DType::bfloat16;
    case at::kHalf:
      return DType::float16;
    default:
      TORCH_INTERNAL_ASSERT(false, "unchecked dtype ", type);
  }
}

bool expect_equal(const c10::SymInt& a, const c10::SymInt& b) {
  if (!a.is_symbolic() && !b.is_symbolic()) return a == b;
  return a.sym_eq(b).expect_true(__FILE__, __LINE__);
}

bool expect_equal(c10::SymIntArrayRef a, c10::SymIntArrayRef b) {
  const auto equal = [](const c10::SymInt& x, const c10::SymInt& y) { return expect_equal(x, y); };
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), equal);
}

bool expect_other(const c10::SymInt& a, const c10::SymInt& b) {
  if (!a.is_symbolic() && !b.is_symbolic()) return a != b;
  return a.sym_ne(b).expect_true(__FILE__, __LINE__);
}

bool is_half(at::ScalarType type) { return type == at::kBFloat16 || type == at::kHalf; }

void check_input_dtype(const char* op, const Tensor& input) {
  const auto type = input.scalar_type();
  TORCH_CHECK_NOT_IMPLEMENTED(type == at::kDouble || type == at::kFloat || is_half(type), '"', op,
                              "\" not implemented for '", type, "': expected Double, Float, BFloat16 or Half");
}

void check_device(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
  TORCH_CHECK(!tensor.defined() || tensor.device() == input.device(),
              "Expected all tensors to be on the same device, but got ", name, " is on ", tensor.device(),
              ", different from other tensors on ", input.device(), " (when checking argument in ", op, ")");
}

void check_residual(const char* op, const Tensor& residual, const Tensor& input, bool may_be_wider) {
  TORCH_CHECK(expect_equal(residual.sym_sizes(), input.sym_sizes()),
              "Expected residual to be of same shape as input, but got residual of shape ", residual.sym_sizes(),
              " and input of shape ", input.sym_sizes());
  check_device(op, "residual", residual, input);
  const auto type = input.scalar_type(), given = residual.scalar_type();
  const bool wider = may_be_wider && is_half(type);
  TORCH_CHECK(given == type || (wider && given == at::kFloat), op, ": expected residual of ", type,
              wider ? " or Float" : "", " for an input of ", type, ", but got residual of ", given);
}

at::ScalarType check_parameters(const char* op, const Tensor& input, at::ScalarType input_type,
                                at::ArrayRef<Parameter> parameters) {
  auto type = input_type;
  const Parameter* first = nullptr;
  for (const auto& parameter : parameters) {
    const Tensor& tensor = parameter.tensor;
    if (!tensor.defined()) continue;
    check_device(op, parameter.name, tensor, input);
    if (!first) {
      first = &parameter;
      type = tensor.scalar_type();
      const bool fits = type == input_type || (is_half(input_type) && type == at::kFloat);
      TORCH_CHECK(fits, op, ": mixed dtype: expect parameter to have scalar type of ", input_type,
                  is_half(input_type) ? " or Float" : "", " for an input of ", input_type, ", but got ", parameter.name,
                  " of ", type);
    }
    TORCH_CHECK(tensor.scalar_type() == type, op, ": mixed dtype: all parameters must share same datatype, but got ",
                first->name, " of ", type, " and ", parameter.name, " of ", tensor.scalar_type());
  }
  return type;
}

at::ScalarType check_parameters(const char* op, const Tensor& input, at::ArrayRef<Parameter> parameters) {
  return check_parameters(op, input, input.scalar_type(), parameters);
}

}  // namespace normext
