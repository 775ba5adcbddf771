// batch_norm.cuh -- what BatchNorm's kernels compute for one channel, and for one element of it.
#pragma once
#include "cuda/channels/maps.cuh"
#include "cuda/elements/parameters.cuh"
#include "cuda/elements/partials.cuh"
#include "cuda/elements/sums.cuh"
#include "ops/channel_norm.h"

namespace normext::cuda {

// ------------------------------------------------------------------------------------------------ elements
// dx = (dy + level + xhat * slope) * scale, with xhat = (x - mean) * rstd. (rstd joined to the slope would underflow
// for deviations of 1e30.)
struct TrainingGradient {
  static constexpr int kInputs = 2, kCoefficients = 5;  // dy, x; scale, mean, rstd, slope, level
  static constexpr bool kOfVectors = false, kOptional = false;
  template <class A>
  __device__ static A apply(const A (&in)[2], const A (&k)[5]) {
    return fma((in[1] - k[1]) * k[2], k[3], in[0] + k[4]) * k[0];
  }
};

// dx = dy * scale
struct EvaluationGradient {
  static constexpr int kInputs = 1, kCoefficients = 1;
  static constexpr bool kOfVectors = false, kOptional = false;
  template <class A>
  __device__ static A apply(const A (&in)[1], const A (&k)[1]) {
    return in[0] * k[0];
  }
};

// ------------------------------------------------------------------------------------------------ channels
// What a channel's results need beside its sums. Loaded before the sums are taken: it would be waited for after them.
struct ChannelAffine {
  double weight, bias;

  template <class T>
  __device__ static ChannelAffine load(Type<T>, const BatchNormForward& op, int64_t channel) {
    return {parameter<T>(op.weight, op.param_dtype, channel, 1), parameter<T>(op.bias, op.param_dtype, channel, 0)};
  }
};
template <class A>
struct ChannelScale {
  A mean, rstd;
  double weight;

  template <class T>
  __device__ static ChannelScale load(Type<T>, const BatchNormBackward& op, int64_t channel) {
    return {static_cast<const A*>(op.mean)[channel], static_cast<const A*>(op.rstd)[channel],
            parameter<T>(op.weight, op.param_dtype, channel, 1)};
  }
};

// Writes a channel's statistics and gives its coefficients.
template <class T>
__device__ void finish_forward(const BatchNormForward& op, int64_t channel, const Moments& moments,
                               const ChannelAffine& affine, bool write, Compute<T> (&k)[3]) {
  using A = Compute<T>;
  const double rstd = reciprocal_root(moments.variance + op.eps);
  if (write) {
    static_cast<A*>(op.mean)[channel] = static_cast<A>(moments.mean);
    static_cast<A*>(op.rstd)[channel] = static_cast<A>(rstd);
    if (op.var) static_cast<A*>(op.var)[channel] = static_cast<A>(moments.variance);
  }
  Normalize::coefficients(moments.mean, rstd, affine.weight, affine.bias, k);
}

// Those of TrainingGradient.
template <class A>
__device__ void gradient_coefficients(double g, const CenteredSums& sums, double inverse_n,
                                      const ChannelScale<A>& scale, A (&k)[5]) {
  k[0] = static_cast<A>(static_cast<double>(scale.rstd) * scale.weight);
  k[1] = scale.mean;
  k[2] = scale.rstd;
  k[3] = static_cast<A>(-sums.g_xhat * inverse_n);
  k[4] = static_cast<A>((sums.offset * sums.g_xhat - g) * inverse_n);
}

// Writes a channel's weight and bias gradients and gives its coefficients in training, from the sums of dy, dy * xhat
// and xhat.
template <class T>
__device__ void finish_backward(const BatchNormBackward& op, int64_t channel, const double (&sums)[3], double inverse_n,
                                const ChannelScale<Compute<T>>& scale, bool write, Compute<T> (&k)[5]) {
  // In evaluation the mean is a given number, not the data's: nothing to correct.
  const auto c = CenteredSums::of(sums, inverse_n, op.training);
  if (write) {
    if (op.grad_weight) store_parameter<T>(op.grad_weight, op.param_dtype, channel, c.g_xhat);
    if (op.grad_bias) store_parameter<T>(op.grad_bias, op.param_dtype, channel, sums[0]);
  }
  gradient_coefficients(sums[0], c, inverse_n, scale, k);
}

// A batch in parts: writes a part's sums, or gives a channel's coefficients by the whole's. What the mean is off by is
// known.
template <class T>
__device__ void finish_part(const BatchNormBackward& op, int64_t channel, const double (&sums)[3],
                            const ChannelScale<Compute<T>>& scale, bool write, Compute<T> (&k)[5]) {
  const int64_t channels = op.shape.channels;
  const double offset = (op.moments[channel] - static_cast<double>(scale.mean)) * static_cast<double>(scale.rstd);
  if (op.found) {
    if (!write) return;
    op.found[channel] = sums[0];
    op.found[channels + channel] = sums[1] - offset * sums[0];
  } else {
    const CenteredSums whole{offset, op.given[channels + channel]};
    gradient_coefficients(op.given[channel], whole, 1 / op.moments[2 * channels], scale, k);
  }
}

// ------------------------------------------------------------------------------------------------ evaluation
// Of the running statistics, or of a whole batch's moments, computed where they are needed.
template <class T>
struct EvaluationCoefficients {
  BatchNormForward op;

  __device__ void operator()(int64_t channel, Compute<T> (&k)[3], bool first) const {
    finish_forward<T>(op, channel, moments(channel), ChannelAffine::load(Type<T>{}, op, channel), first, k);
  }

 private:
  __device__ Moments moments(int64_t channel) const {
    const int64_t channels = op.shape.channels;
    if (op.given) return {op.given[channel], op.given[channels + channel] / op.given[2 * channels]};
    return {parameter<T>(op.running_mean, op.param_dtype, channel, 0),
            parameter<T>(op.running_var, op.param_dtype, channel, 1)};
  }
};
template <class T>
struct EvaluationGradientCoefficients {
  BatchNormBackward op;

  __device__ void operator()(int64_t channel, Compute<T> (&k)[1], bool) const {
    k[0] = static_cast<Compute<T>>(static_cast<double>(static_cast<const Compute<T>*>(op.rstd)[channel]) *
                                   parameter<T>(op.weight, op.param_dtype, channel, 1));
  }
};

// ------------------------------------------------------------------------------------------------ activation, residual
// In training as they have been stored, in evaluation from the running statistics.
template <class T>
struct ActivatedCoefficients {
  EvaluationCoefficients<T> evaluation;
  StoredCoefficients<Compute<T>, 3> stored;

  __device__ void operator()(int64_t channel, Compute<T> (&k)[3], bool first) const {
    if (evaluation.op.running_mean || evaluation.op.given)
      evaluation(channel, k, first);
    else
      stored(channel, k, first);
  }
};

// What an activation is taken of.
template <class T>
struct ActivatedStart {
  BatchNormBackward op;

  __device__ void operator()(int64_t channel, Compute<T> (&k)[4]) const {
    k[0] = static_cast<const Compute<T>*>(op.mean)[channel];
    k[1] = static_cast<const Compute<T>*>(op.rstd)[channel];
    k[2] = affine<T>(op.weight, op.param_dtype, channel, 1);
    k[3] = affine<T>(op.bias, op.param_dtype, channel, 0);
  }
};

// Nothing is to be corrected in evaluation, where there are no stored coefficients: those of TrainingGradient.
template <class T>
struct ActivatedGradientCoefficients {
  ActivatedStart<T> start;
  StoredCoefficients<Compute<T>, 5> stored;

  __device__ void operator()(int64_t channel, Compute<T> (&k)[6], bool first) const {
    Compute<T> of_start[4], of_sums[5] = {};
    start(channel, of_start);
    if (start.op.training) stored(channel, of_sums, first);
#pragma unroll
    for (int i = 0; i < 4; ++i) k[i] = of_start[i];
    k[4] = of_start[2] * of_sums[3];
    k[5] = of_start[2] * of_sums[4];
  }
};

// ------------------------------------------------------------------------------------------------ all slices together
template <class T>
__global__ void __launch_bounds__(kFinishThreads, kFinishBlocks)
    finish_forward_kernel(const BatchNormForward op, const Partials partials, const Shift<T> shift_of,
                          const StoredCoefficients<Compute<T>, 3> coefficients) {
  follow();
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kFinishChannels + threadIdx.x / kWarpSize;
  if (channel >= op.shape.channels) return;  // whole warps
  Compute<T> shift[1], k[3];
  shift_of(channel, shift);
  const auto affine = ChannelAffine::load(Type<T>{}, op, channel);
  double sums[2];
  partials.sum(channel, sums);
  __syncwarp();  // all lanes have read the shift before the mean, which it may be, is written
  const bool write = threadIdx.x % kWarpSize == 0;
  const auto moments = Moments::of(sums, shift[0], partials.inverse_count);
  if (op.found) {
    if (!write) return;
    op.found[channel] = moments.mean;
    op.found[op.shape.channels + channel] = moments.variance * static_cast<double>(op.shape.batch * op.shape.plane);
    return;
  }
  finish_forward<T>(op, channel, moments, affine, write, k);
  if (write) coefficients.store(channel, k);
}

template <class T>
__global__ void __launch_bounds__(kFinishThreads, kFinishBlocks)
    finish_backward_kernel(const BatchNormBackward op, const Partials partials,
                           const StoredCoefficients<Compute<T>, 5> coefficients) {
  follow();
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kFinishChannels + threadIdx.x / kWarpSize;
  if (channel >= op.shape.channels) return;
  const auto scale = ChannelScale<Compute<T>>::load(Type<T>{}, op, channel);
  double sums[3];
  partials.sum(channel, sums);
  Compute<T> k[5];
  const bool write = threadIdx.x % kWarpSize == 0;
  if (op.moments)
    finish_part<T>(op, channel, sums, scale, write, k);
  else
    finish_backward<T>(op, channel, sums, partials.inverse_count, scale, write, k);
  if (write && !op.found) coefficients.store(channel, k);
}

// ------------------------------------------------------------------------------------------------ running statistics
constexpr int kUpdateThreads = 128;

template <class P>
__global__ void __launch_bounds__(kUpdateThreads) update_kernel(const BatchNormUpdate op, const double unbiased) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kUpdateThreads + threadIdx.x;
  if (channel >= op.channels) return;
  const auto blend = [&](void* running, const void* batch, double factor) {
    if (!running) return;
    P& value = static_cast<P*>(running)[channel];
    const double of_batch = static_cast<const Compute<P>*>(batch)[channel] * factor;
    value = narrow<P>(static_cast<Compute<P>>((1 - op.momentum) * widen(value) + op.momentum * of_batch));
  };
  blend(op.running_mean, op.mean, 1);
  blend(op.running_var, op.var, unbiased);
}

}  // namespace normext::cuda
