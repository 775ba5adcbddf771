// batch_norm.h -- BatchNorm as plain data: what a device needs to know to run it.
//
// input, output and the gradients hold [batch, channels, plane] elements of `dtype`, contiguous, or
// [batch, plane, channels] if channels_last; plane is the product of the spatial sizes, 1 for [N, C].
// There is at least one element. Per-channel arrays: mean, rstd and var are float64 if `dtype` is float64, float32
// otherwise; weight and bias and the running statistics are of `param_dtype`, which is dtype, or float32 where dtype is
// a half type.
#pragma once
#include "ops/types.h"

namespace normext {

struct BatchNormShape {
  int64_t batch, channels, plane;
  bool channels_last;
};

// output = (input - mean) * rstd * weight + bias, with rstd = 1 / sqrt(var + eps)
// (Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 1). A null weight stands for 1, a null bias for 0.
// Training: mean and var (biased) are the batch's. Evaluation (running_mean and running_var given): they are the
// running ones, and `var` is not written.
struct BatchNormForward {
  const void *input, *weight, *bias, *running_mean, *running_var;
  void *output, *mean, *rstd, *var;
  BatchNormShape shape;
  double eps;
  DType dtype, param_dtype;
};

// With scale = weight * rstd and xhat = (input - mean) * rstd, means taken over a channel:
//   training:   grad_input = scale * (grad_output - mean(grad_output) - xhat * mean(grad_output * xhat))
//   evaluation: grad_input = scale * grad_output
//   grad_weight = sum of grad_output * xhat,  grad_bias = sum of grad_output
// A null gradient pointer is a gradient nobody asked for.
struct BatchNormBackward {
  const void *grad_output, *input, *mean, *rstd, *weight;
  void *grad_input, *grad_weight, *grad_bias;
  BatchNormShape shape;
  bool training;
  DType dtype, param_dtype;
};

// running = (1 - momentum) * running + momentum * batch, with the unbiased variance var * count / (count - 1).
// `dtype` is that of the running statistics, either of which may be null.
struct BatchNormUpdate {
  const void *mean, *var;
  void *running_mean, *running_var;
  int64_t channels, count;
  double momentum;
  DType dtype;
};

}  // namespace normext
