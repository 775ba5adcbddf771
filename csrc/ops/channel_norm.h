// channel_norm.h -- BatchNorm, GroupNorm and InstanceNorm as plain data: what a device needs to know to run them.
//
// input, output, residual and the gradients of these hold [batch, channels, plane] elements of `dtype`, contiguous, or
// [batch, plane, channels] if channels_last; plane is the product of the spatial sizes, 1 for [N, C]. There is at least
// one element. weight and bias are [channels] of `param_dtype`, as the running statistics are, which is dtype, or
// float32 where dtype is a half type. mean, rstd and var are float64 if `dtype` is float64, float32 otherwise.
//
// The norms differ in what they take statistics over, which is two kinds of op and not a flag in one: BatchNorm takes
// them per channel, over the batch, from the data or given; GroupNorm per sample and group of channels (InstanceNorm is
// GroupNorm with a channel to a group), so that a sample's results depend on that sample alone, to the last bit.
//
// In all of them, with xhat = (input - mean) * rstd, a null weight standing for 1, a null bias and residual for 0:
//   z      = xhat * weight + bias + residual
//   output = activation(z)
// and g = grad_output * activation'(z), which is the gradient of the residual. Backward is given the input (and the
// residual), not z: it computes z again.
#pragma once
#include "ops/types.h"

namespace normext {

struct ChannelNormShape {
  int64_t batch, channels, plane;
  bool channels_last;
};

// none: z. leaky_relu: z, or slope * z where z < 0 (relu is that with a slope of 0). silu: z / (1 + exp(-z))
// (Elfwing, Uchibe and Doya, "Sigmoid-weighted linear units for neural network function approximation", 2018).
// Derivatives: 1; 1 where z > 0 and slope elsewhere; s * (1 + z * (1 - s)) with s = 1 / (1 + exp(-z)).
struct Activation {
  enum class Kind : uint8_t { none, leaky_relu, silu } kind = Kind::none;
  double slope = 0;  // of leaky_relu
};

// ------------------------------------------------------------------------------------------------ BatchNorm
// Statistics per channel: mean, rstd and var are [channels]; rstd = 1 / sqrt(var + eps) with the biased variance
// (Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 1).
// Training: mean and var are the batch's. Evaluation (running_mean and running_var given): they are the running ones,
// and `var` is not written.
struct BatchNormForward {
  const void *input, *weight, *bias, *running_mean, *running_var;
  void *output, *mean, *rstd, *var;
  ChannelNormShape shape;
  double eps;
  DType dtype, param_dtype;
  const void* residual = nullptr;
  Activation activation = {};
  // A batch in parts, see BatchNormMerge: the first half finds this part's, and nothing else, into the first two
  // arrays of `found`; the second maps by those of the whole batch, in the place of running statistics.
  double* found = nullptr;
  const double* given = nullptr;
};

// With scale = weight * rstd, means taken over a channel:
//   training:   grad_input = scale * (g - mean(g) - xhat * mean(g * xhat))
//   evaluation: grad_input = scale * g
//   grad_weight = sum of g * xhat,  grad_bias = sum of g,  grad_residual = g
// A null gradient pointer is a gradient nobody asked for. Without an activation g is grad_output: bias and residual are
// not read, and grad_residual is null, as grad_output serves for it.
struct BatchNormBackward {
  const void *grad_output, *input, *mean, *rstd, *weight;
  void *grad_input, *grad_weight, *grad_bias;
  ChannelNormShape shape;
  bool training;
  DType dtype, param_dtype;
  const void *bias = nullptr, *residual = nullptr;
  void* grad_residual = nullptr;
  Activation activation = {};
  // A batch in parts, as forward: `moments` are the whole batch's, which mean and rstd are rounded from. The first half
  // finds the sums of g and g * xhat over this part, [2, channels]; the second is given those over the whole batch and
  // maps. In training, without an activation; gradients of weight and bias are the sums.
  const double* moments = nullptr;
  double* found = nullptr;
  const double* given = nullptr;
};

// What a part of a batch is to the whole: [2 * channels + 1] numbers, the means of its channels, the sums of squared
// deviations from them, and how many elements a channel has, which may be none. Parts are merged in order, one by one
// (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979).
struct BatchNormMerge {
  const double* parts;  // [count, 2 * channels + 1]
  double* merged;       // [2 * channels + 1]
  int64_t channels, count;
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

// ------------------------------------------------------------------------------------------------ GroupNorm
// Statistics per sample and group: mean, rstd and var (biased) are [batch, groups], group g being the channels from
// g * channels / groups on, and rstd = 1 / sqrt(var + eps)
// (Wu and He, "Group Normalization", 2018, equations 1, 2 and 7; InstanceNorm, groups == channels: Ulyanov, Vedaldi and
// Lempitsky, "Instance Normalization: The Missing Ingredient for Fast Stylization", 2016). No residual.
// In contiguous data a group of a sample is contiguous.
struct GroupNormForward {
  const void *input, *weight, *bias;
  void *output, *mean, *rstd, *var;
  ChannelNormShape shape;
  int64_t groups;  // divides channels
  double eps;
  Activation activation = {};
  DType dtype, param_dtype;
};

// Means taken over a sample's group, with h = g * weight:
//   grad_input  = rstd * (h - mean(h) - xhat * mean(h * xhat))
//   grad_weight = sum of g * xhat over a channel's elements of all samples,  grad_bias = sum of g, likewise
// A null gradient pointer is a gradient nobody asked for. bias is read where there is an activation only.
struct GroupNormBackward {
  const void *grad_output, *input, *mean, *rstd, *weight, *bias;
  void *grad_input, *grad_weight, *grad_bias;
  ChannelNormShape shape;
  int64_t groups;
  Activation activation = {};
  DType dtype, param_dtype;
};

}  // namespace normext
