// row_norm.h -- LayerNorm and RMSNorm as plain data: what a device needs to know to run them.
//
// input, output and the gradients are contiguous [rows, columns] of `dtype`; weight and bias are [columns] of
// `param_dtype`; mean and rstd are [rows], float64 if `dtype` is float64, float32 otherwise.
// There is at least one element. param_dtype is dtype, or float32 where dtype is a half type.
#pragma once
#include "ops/types.h"

namespace normext {

// What a row is normalized by:
//   centered:   its mean, and rstd = 1 / sqrt(var + eps) with the biased variance
//               (LayerNorm: Ba, Kiros and Hinton, "Layer Normalization", 2016, equations 3 and 4);
//   uncentered: rstd = 1 / sqrt(mean(x^2) + eps) alone; zero stands in the place of the mean, which is a null pointer
//               (RMSNorm: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, equation 4).
enum class RowStatistics : uint8_t { centered, uncentered };

// output = (input - mean) * rstd * (weight + weight_offset) + bias. A null weight stands for 1, and weight_offset is 0
// then; a null bias stands for 0. A norm that is not centered has no bias.
struct RowNormForward {
  const void *input, *weight, *bias;
  void *output, *mean, *rstd;
  int64_t rows, columns;
  double eps, weight_offset;
  RowStatistics statistics;
  DType dtype, param_dtype;
};

// With g = grad_output * (weight + weight_offset) and xhat = (input - mean) * rstd, means taken over a row:
//   grad_input  = rstd * (g - mean(g) - xhat * mean(g * xhat)), without mean(g) where the row is not centered
//   grad_weight = sum over rows of grad_output * xhat
//   grad_bias   = sum over rows of grad_output
// A null gradient pointer is a gradient nobody asked for.
struct RowNormBackward {
  const void *grad_output, *input, *mean, *rstd, *weight;
  void *grad_input, *grad_weight, *grad_bias;
  int64_t rows, columns;
  double weight_offset;
  RowStatistics statistics;
  DType dtype, param_dtype;
};

}  // namespace normext
