// partials.cuh -- between the kernels of one op: partial sums, what the sums start from, what the maps take.
#pragma once
#include "numerics.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace normext::cuda {

// What the moments of a channel are taken about: its first value, or its mean as found before.
template <class T>
struct Shift {
  const T* input;
  const Compute<T>* mean;
  int64_t stride;

  __device__ void operator()(int64_t channel, Compute<T> (&k)[1]) const {
    k[0] = finite_or(mean ? mean[channel] : widen(input[channel * stride]), Compute<T>(0));
  }
};

// What xhat is made of.
template <class A>
struct SavedStatistics {
  const A *mean, *rstd;

  __device__ void operator()(int64_t channel, A (&k)[2]) const {
    k[0] = mean[channel];
    k[1] = rstd[channel];
  }
};

// A warp adds up a channel's partial sums, which stand at the columns channel, channel + channels, ...
struct Partials {
  const double* of;
  int64_t channels, repeats;
  unsigned slices;
  double inverse_count;  // of a channel's values

  template <int kSums>
  __device__ void sum(int64_t channel, double (&sums)[kSums]) const {
#pragma unroll
    for (int k = 0; k < kSums; ++k) sums[k] = 0;
    const unsigned items = static_cast<unsigned>(repeats) * slices;
    for (unsigned item = threadIdx.x % kWarpSize; item < items; item += kWarpSize) {
      const int64_t column = channel + item / slices * channels;
#pragma unroll
      for (int k = 0; k < kSums; ++k) sums[k] += of[(column * slices + item % slices) * kSums + k];
    }
    warp_sum<kWarpSize>(sums);
  }
};

constexpr int kFinishThreads = 128;
constexpr int kFinishChannels = kFinishThreads / kWarpSize;  // a warp each

// Coefficients of all channels, as an earlier kernel has stored them.
template <class A, int kCount>
struct StoredCoefficients {
  A* of;

  __device__ void operator()(int64_t channel, A (&k)[kCount], bool) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) k[i] = of[channel * kCount + i];
  }
  __device__ void store(int64_t channel, const A (&k)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) of[channel * kCount + i] = k[i];
  }
};

}  // namespace normext::cuda
