// row_norm_skin.h -- what the files of the row norms' bindings share. All of it is written once for every row norm:
//   row_norm_checks.cpp     what may be handed in, and what is said of anything else
//   row_norm_kernels.cpp    from tensors to the ops of csrc/ops, and shapes without data
//   row_norm_autograd.cpp   derivatives
//   row_norm.cpp            the operators' signatures, autocast, and what is registered
#pragma once
#include "common.h"
#include "ops/row_norm.h"

namespace normext {

// Which tensors a row norm has beside its input:
//   plain:    weight and bias, of normalized_shape
//   add:      those, and a residual that is added before
//   adaptive: scale and shift in their places. They have as many dimensions as the input, of its sizes or, where one
//             row of them is shared by many rows of the input, 1: [B, 1, C] beside [B, T, C]. Rows have one dimension
enum class RowNormKind : uint8_t { plain, add, adaptive };

struct RowNorm {
  RowNormKind kind;
  RowStatistics statistics;
  double eps, weight_offset;

  bool centered() const { return statistics == RowStatistics::centered; }
  bool adaptive() const { return kind == RowNormKind::adaptive; }
  const char* name() const;
};

// The tensors of a forward pass; those that are not there are undefined.
struct RowNormInputs {
  const Tensor &input, &residual, &weight, &bias;
  c10::SymIntArrayRef normalized_shape;
};
struct RowNormOutputs {
  Tensor output, sum, mean, rstd;  // no sum without a residual, no mean where the norm is not centered
};

// Those of a backward pass. `input` is what was normalized: the sum, if there is a residual. dtype is the output's.
struct RowNormGrads {
  const Tensor &grad_output, &grad_sum, &input, &mean, &rstd, &weight;
  c10::SymIntArrayRef normalized_shape;
  at::ScalarType dtype;
};
// The residual's gradient is the input's where both are of one dtype, and not asked for then.
using RowNormMask = std::array<bool, 4>;  // input, residual, weight, bias
struct RowNormGradients {
  Tensor input, residual, weight, bias;
};

// Both return the parameters' dtype.
at::ScalarType check(const RowNorm& norm, const RowNormInputs& in);
at::ScalarType check_backward(const RowNorm& norm, const RowNormGrads& in, const RowNormMask& mask);

// Throws unless scale or shift, in any of the shapes that callers may give it, fits the input.
void check_adaptive(const RowNorm& norm, const Tensor& input, const Tensor& scale, const Tensor& shift);

RowNormOutputs forward_kernel(const RowNorm& norm, const RowNormInputs& in);
RowNormOutputs forward_meta(const RowNorm& norm, const RowNormInputs& in);
RowNormOutputs forward_autograd(const RowNorm& norm, const RowNormInputs& in);
RowNormGradients backward_kernel(const RowNorm& norm, const RowNormGrads& in, const RowNormMask& mask);
RowNormGradients backward_meta(const RowNorm& norm, const RowNormGrads& in, const RowNormMask& mask);
RowNormGradients backward_autograd(const RowNorm& norm, const RowNormGrads& in, const RowNormMask& mask);

// The same through torch's dispatcher, by the operators of row_norm.cpp.
RowNormOutputs call_forward(const RowNorm& norm, const RowNormInputs& in);
RowNormGradients call_backward(const RowNorm& norm, const RowNormGrads& in, const RowNormMask& mask);

}  // namespace normext
