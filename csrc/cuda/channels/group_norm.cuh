// group_norm.cuh -- GroupNorm, and InstanceNorm, which is GroupNorm with a channel to a group: what is computed for a
// group of a sample and for an element, and the kernels between sums and maps.
//
//   sum_planes_kernel, sum_columns_kernel  sums per sample and channel: planes.cuh, sum_columns.cuh
//   group_norm_finish_*_kernel             behind them: a block adds up the sums of a group
//   map_planes_kernel, map_columns_kernel  behind that, element by element: planes.cuh, map_columns.cuh
//   group_norm_parameters_kernel           last: gradients of the weight and the bias, over all samples
//   group_norm_onchip.cuh                  instead, where a group is contiguous and fits on chip
//
// Here "channel" is one of all samples' together: sample * channels + channel of the sample. How a channel's values are
// added up depends on nothing but the sample's shape and the GPU, so that a sample's results depend on it alone.
#pragma once
#include "cuda/channels/columns.cuh"
#include "cuda/channels/maps.cuh"
#include "cuda/elements/parameters.cuh"
#include "cuda/elements/partials.cuh"
#include "cuda/elements/sums.cuh"
#include "ops/channel_norm.h"

namespace normext::cuda {

// Which channels make a group.
struct Groups {
  Divisor channels, per_group, groups;  // of a sample, of a group; of a sample

  Groups(int64_t of_sample, int64_t of_group)
      : channels(of_sample), per_group(of_group), groups(of_sample / of_group) {}

  __device__ int64_t of_channel(int64_t channel) const { return per_group.divide_any(channel); }
  __device__ int64_t in_sample(int64_t channel) const {
    return channel - channels.divide_any(channel) * channels.value;
  }
  // The first channel of its sample that a group has.
  __device__ int64_t first_channel(int64_t group) const {
    return (group - groups.divide_any(group) * groups.value) * per_group.value;
  }
};

// ------------------------------------------------------------------------------------------------ what sums start from
// The moments of a group's channels are all taken about its first value, or its mean as found before.
template <class T>
struct GroupShift {
  const T* input;
  const Compute<T>* mean;
  Groups groups;
  int64_t sample, stride;  // elements: of a sample, from the first of a group to the next's

  __device__ Compute<T> of_group(int64_t group) const {
    if (mean) return finite_or(mean[group], Compute<T>(0));
    const int64_t n = groups.groups.divide_any(group);
    return finite_or(widen(input[n * sample + (group - n * groups.groups.value) * stride]), Compute<T>(0));
  }
  __device__ void operator()(int64_t channel, Compute<T> (&k)[1]) const { k[0] = of_group(groups.of_channel(channel)); }
};

// What xhat is made of, and what an activation is taken of.
template <class T>
struct GroupSaved {
  const Compute<T>*mean, *rstd;
  const void *weight, *bias;
  DType param_dtype;
  Groups groups;

  GroupSaved(const GroupNormBackward& op, const Groups& of)
      : mean(static_cast<const Compute<T>*>(op.mean)),
        rstd(static_cast<const Compute<T>*>(op.rstd)),
        weight(op.weight),
        bias(op.bias),
        param_dtype(op.param_dtype),
        groups(of) {}

  template <int kCount>
  __device__ void operator()(int64_t channel, Compute<T> (&k)[kCount]) const {
    const int64_t group = groups.of_channel(channel);
    k[0] = mean[group];
    k[1] = rstd[group];
    if constexpr (kCount > 2) {
      const int64_t c = groups.in_sample(channel);
      k[2] = affine<T>(weight, param_dtype, c, 1);
      k[3] = affine<T>(bias, param_dtype, c, 0);
    }
  }
};

// ------------------------------------------------------------------------------------------------ all sums together
// Sums per sample, repeat, channel and slice: where a row of columns is several pixels, a channel is in it repeatedly.
struct ChannelPartials {
  const double* of;
  Groups groups;
  Divisor repeats, slices;  // of a sample; of each
  double inverse_count;     // of a group's values

  // Calls f(channel of the group, sums) for all that a group has, with all threads of the block.
  template <int kSums, int kThreads, class F>
  __device__ void for_group(int64_t group, const F& f) const {
    const int64_t first = groups.first_channel(group), sample = groups.groups.divide_any(group);
    const int64_t count = groups.per_group.value * slices.value;
    for (int64_t repeat = 0; repeat < repeats.value; ++repeat) {
      const double* const row =
          of + ((sample * repeats.value + repeat) * groups.channels.value + first) * slices.value * kSums;
#pragma unroll 4
      for (int64_t i = threadIdx.x; i < count; i += kThreads) f(i, row + i * kSums);
    }
  }
};

constexpr int kGroupFinishThreads = 128;

// As doubles, since what a float32 loses of the mean is not small beside a small deviation.
struct GroupStatistics {
  double mean, rstd;
};

template <class T>
__device__ double store_statistics(const GroupNormForward& op, int64_t group, const Moments& moments, bool write) {
  using A = Compute<T>;
  const double rstd = reciprocal_root(moments.variance + op.eps);
  if (write) {
    static_cast<A*>(op.mean)[group] = static_cast<A>(moments.mean);
    static_cast<A*>(op.rstd)[group] = static_cast<A>(rstd);
    static_cast<A*>(op.var)[group] = static_cast<A>(moments.variance);
  }
  return rstd;
}

template <class T>
__global__ void __launch_bounds__(kGroupFinishThreads, kFinishBlocks)
    group_norm_finish_forward_kernel(const GroupNormForward op, const ChannelPartials partials,
                                     const GroupShift<T> shift_of, GroupStatistics* const statistics) {
  follow();
  using Sum = GroupSum<double, 2, kGroupFinishThreads, kGroupFinishThreads, false>;
  SHARED_ARRAY(double, exchange, Sum::kSharedValues);
  const int64_t group = blockIdx.x;
  const Compute<T> shift = shift_of.of_group(group);
  double sums[2] = {};
  partials.for_group<2, kGroupFinishThreads>(group, [&](int64_t, const double* of) {
    sums[0] += of[0];
    sums[1] += of[1];
  });
  Sum group_sum(exchange);
  group_sum(sums);  // now all have read the shift, and the mean, which it may be, can be written
  const auto moments = Moments::of(sums, shift, partials.inverse_count);
  const double rstd = store_statistics<T>(op, group, moments, threadIdx.x == 0);
  if (threadIdx.x == 0) statistics[group] = {moments.mean, rstd};
}

template <class T>
struct GroupCoefficients {
  const GroupStatistics* of;
  const void *weight, *bias;
  DType param_dtype;
  Groups groups;

  __device__ void operator()(int64_t channel, Compute<T> (&k)[3], bool) const {
    const GroupStatistics s = of[groups.of_channel(channel)];
    const int64_t c = groups.in_sample(channel);
    Normalize::coefficients(s.mean, s.rstd, parameter<T>(weight, param_dtype, c, 1),
                            parameter<T>(bias, param_dtype, c, 0), k);
  }
};

// ------------------------------------------------------------------------------------------------ backward
// Of a group; the offset is what CenteredSums finds.
struct GroupGradient {
  double slope, level, offset;

  __device__ static GroupGradient of(const double (&sums)[3], double inverse_n) {
    const auto c = CenteredSums::of(sums, inverse_n, true);
    return {-c.g_xhat * inverse_n, (c.offset * c.g_xhat - sums[0]) * inverse_n, c.offset};
  }
};

template <class T>
__global__ void __launch_bounds__(kGroupFinishThreads, kFinishBlocks)
    group_norm_finish_backward_kernel(const GroupNormBackward op, const ChannelPartials partials,
                                      GroupGradient* const gradients) {
  follow();
  using Sum = GroupSum<double, 3, kGroupFinishThreads, kGroupFinishThreads, false>;
  SHARED_ARRAY(double, exchange, Sum::kSharedValues);
  const int64_t group = blockIdx.x, first = partials.groups.first_channel(group);
  double sums[3] = {};
  partials.for_group<3, kGroupFinishThreads>(group, [&](int64_t i, const double* of) {
    const double weight = parameter<T>(op.weight, op.param_dtype, first + partials.slices.divide_any(i), 1);
    sums[0] = fma(weight, of[0], sums[0]);
    sums[1] = fma(weight, of[1], sums[1]);
    sums[2] += of[2];
  });
  Sum group_sum(exchange);
  group_sum(sums);
  if (threadIdx.x == 0) gradients[group] = GroupGradient::of(sums, partials.inverse_count);
}

template <class T>
struct GroupGradientCoefficients {
  GroupSaved<T> saved;
  const GroupGradient* of;

  __device__ void operator()(int64_t channel, Compute<T> (&k)[6], bool) const {
    Compute<T> start[4];
    saved(channel, start);
    const GroupGradient gradient = of[saved.groups.of_channel(channel)];
#pragma unroll
    for (int i = 0; i < 4; ++i) k[i] = start[i];
    k[4] = static_cast<Compute<T>>(gradient.slope);
    k[5] = static_cast<Compute<T>>(gradient.level);
  }
};

// A block adds up a channel's sums of g and g * xhat over all samples, and what else they are split by. Where they are
// kept with the sum of xhat, the offset that follows from it is still to be taken from xhat.
template <class T, int kSums>
__global__ void __launch_bounds__(kGroupFinishThreads, kFinishBlocks)
    group_norm_parameters_kernel(const GroupNormBackward op, const ChannelPartials partials,
                                 const GroupGradient* const gradients) {
  follow();
  using Sum = GroupSum<double, 2, kGroupFinishThreads, kGroupFinishThreads, false>;
  SHARED_ARRAY(double, exchange, Sum::kSharedValues);
  const Groups& groups = partials.groups;
  const int64_t channel = blockIdx.x, group = groups.of_channel(channel), slices = partials.slices.value;
  const int64_t count = op.shape.batch * partials.repeats.value * slices;
  double sums[2] = {};
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += kGroupFinishThreads) {
    const int64_t row = partials.slices.divide_any(i), slice = i - row * slices;
    const double* const of = partials.of + ((row * groups.channels.value + channel) * slices + slice) * kSums;
    double g_xhat = of[1];
    if constexpr (kSums == 3) {
      const int64_t sample = partials.repeats.divide_any(row);
      g_xhat -= gradients[sample * groups.groups.value + group].offset * of[0];
    }
    sums[0] += of[0];
    sums[1] += g_xhat;
  }
  Sum group_sum(exchange);
  group_sum(sums);
  if (threadIdx.x != 0) return;
  if (op.grad_weight) store_parameter<T>(op.grad_weight, op.param_dtype, channel, sums[1]);
  if (op.grad_bias) store_parameter<T>(op.grad_bias, op.param_dtype, channel, sums[0]);
}

}  // namespace normext::cuda
