// row_norm.h -- LayerNorm as plain data: what a device needs to know to run it.
//
// input, output and the gradients are contiguous [rows, columns] of `dtype`; weight and bias are [columns] of
// `param_dtype`; mean and rstd are [rows], float64 if `dtype` is float64, float32 otherwise.
// There is at least one element. param_dtype is dtype, or float32 where dtype is a half type.
#pragma once
#include "ops/types.h"

namespace normext {

// output = (input - mean) * rstd * weight + bias, with rstd = 1 / sqrt(var + eps) and the biased variance
// (Ba, Kiros and Hinton, "Layer Normalization", 2016, equations 3 and 4). A null weight stands for 1, a null bias for
// 0.
struct LayerNormForward {
  const void *input, *weight, *bias;
  void *output, *mean, *rstd;
  int64_t rows, columns;
  double eps;
  DType dtype, param_dtype;
};

// With g = grad_output * weight and xhat = (input - mean) * rstd, means taken over a row:
//   grad_input  = rstd * (g - mean(g) - xhat * mean(g * xhat))
//   grad_weight = sum over rows of grad_output * xhat
//   grad_bias   = sum over rows of grad_output
// A null gradient pointer is a gradient nobody asked for.
struct LayerNormBackward {
  const void *grad_output, *input, *mean, *rstd, *weight;
  void *grad_input, *grad_weight, *grad_bias;
  int64_t rows, columns;
  DType dtype, param_dtype;
};

}  // namespace normext
