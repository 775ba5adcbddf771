// partials.cuh -- between the kernels of one op: partial sums, what the sums start from, what the maps take.
#pragma once
#include "cuda/elements/numerics.cuh"
#include "cuda/elements/reduce.cuh"
#include "cuda/elements/vec.cuh"

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

// Squares are taken about zero.
template <class A>
struct Origin {
  __device__ void operator()(int64_t, A (&k)[1]) const { k[0] = 0; }
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
template <class A>
struct SavedRstd {
  const A* rstd;

  __device__ void operator()(int64_t channel, A (&k)[1]) const { k[0] = rstd[channel]; }
};

// A warp adds up a channel's partial sums, which stand at the rows channel, channel + channels, ... of as many slices.
struct Partials {
  const double* of;
  int64_t channels, repeats;
  unsigned slices;
  double inverse_count;  // of a channel's values

  static constexpr int kAtOnce = 8;  // loads on their way together

  template <int kSums>
  __device__ void sum(int64_t channel, double (&sums)[kSums]) const {
#pragma unroll
    for (int k = 0; k < kSums; ++k) sums[k] = 0;
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {
      const double* const row = of + (channel + repeat * channels) * slices * kSums;
      for (unsigned first = threadIdx.x % kWarpSize; first < slices; first += kAtOnce * kWarpSize) {
        double loaded[kAtOnce][kSums];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
          for (int k = 0; k < kSums; ++k) {
            const unsigned slice = first + i * kWarpSize;
            loaded[i][k] = slice < slices ? row[slice * int64_t{kSums} + k] : 0;
          }
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
          for (int k = 0; k < kSums; ++k) sums[k] += loaded[i][k];
        }
      }
    }
    warp_sum<kWarpSize>(sums);
  }
};

// Left to itself, nvcc gives such small kernels the 32 registers with which an SM is full: too few for all those loads.
constexpr int kFinishThreads = 128, kFinishBlocks = 4;
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
