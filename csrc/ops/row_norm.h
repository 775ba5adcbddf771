// row_norm.h -- LayerNorm and RMSNorm as plain data: what a device needs to know to run them.
//
// Arrays of rows are [rows, columns]; those that are read may lie in strides, those that are written are contiguous.
// weight and bias are [lines, columns] of `param_dtype`, one line for `rows_per_line` rows after another; mean and rstd
// are [rows], float64 if `dtype` is float64, float32 otherwise. There is at least one element. param_dtype is dtype, or
// float32 where dtype is a half type.
#pragma once
#include "ops/types.h"

namespace normext {

// What a row is normalized by:
//   centered:   its mean, and rstd = 1 / sqrt(var + eps) with the biased variance
//               (LayerNorm: Ba, Kiros and Hinton, "Layer Normalization", 2016, equations 3 and 4);
//   uncentered: rstd = 1 / sqrt(mean(x^2) + eps) alone; zero stands in the place of the mean, which is a null pointer
//               (RMSNorm: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, equation 4).
enum class RowStatistics : uint8_t { centered, uncentered };

// Where the rows of an array begin: row r at (r / inner) * outer_stride + (r % inner) * inner_stride elements after the
// first. A row's own elements are adjacent. Contiguous rows: {rows, 0, columns}.
struct RowStrides {
  int64_t inner, outer_stride, inner_stride;
};

// Which parameters a row has: line r / rows_per_line, and lines begin so many elements apart. One line for all rows
// (LayerNorm's, RMSNorm's): rows_per_line is rows. Lines per sample or token are the scale and shift of adaptive norms
// (Peebles and Xie, "Scalable Diffusion Models with Transformers", 2022, section 3.2), with a weight_offset of 1.
struct ParameterLines {
  int64_t rows_per_line, weight_stride, bias_stride;
};

// output = (x - mean) * rstd * (weight + weight_offset) + bias. A null weight stands for 1, and weight_offset is 0
// then; a null bias stands for 0.
// x is the input, of `dtype` as the output is; or, with a residual, sum = input + residual, rounded to `sum_dtype`,
// that of residual and sum: dtype, or float32 where dtype is a half type. Without a residual, sum is null and sum_dtype
// is dtype.
struct RowNormForward {
  const void *input, *residual, *weight, *bias;
  void *output, *sum, *mean, *rstd;
  int64_t rows, columns;
  RowStrides input_strides, residual_strides;
  ParameterLines lines;
  double eps, weight_offset;
  RowStatistics statistics;
  DType dtype, sum_dtype, param_dtype;
};

// With x the forward's, g = grad_output * (weight + weight_offset) and xhat = (x - mean) * rstd, means taken over a
// row:
//   grad_input  = rstd * (g - mean(g) - xhat * mean(g * xhat)) + grad_sum, without mean(g) where the row is not
//                 centered, and without grad_sum, the gradient of the sum, where that is null
//   grad_weight = sum over a line's rows of grad_output * xhat
//   grad_bias   = sum over a line's rows of grad_output
// grad_input, rounded to dtype, is the gradient of the residual too: the same number rounded to sum_dtype is
// grad_residual, which is null where sum_dtype is dtype, as one array serves both then.
// input is x, of sum_dtype, as grad_sum is (contiguous); grad_output is of dtype. Lines of grad_weight and grad_bias
// are contiguous. A null gradient pointer is a gradient nobody asked for.
struct RowNormBackward {
  const void *grad_output, *grad_sum, *input, *mean, *rstd, *weight;
  void *grad_input, *grad_residual, *grad_weight, *grad_bias;
  int64_t rows, columns;
  RowStrides grad_output_strides, input_strides;
  ParameterLines lines;
  double weight_offset;
  RowStatistics statistics;
  DType dtype, sum_dtype, param_dtype;
};

}  // namespace normext
