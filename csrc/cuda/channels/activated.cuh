// activated.cuh -- norms that an activation follows, perhaps with a residual added before it: what is read and mapped.
#pragma once
#include "cuda/channels/planes.cuh"
#include "cuda/elements/activation.cuh"
#include "cuda/elements/parameters.cuh"

namespace normext::cuda {

template <class T>
__device__ Compute<T> affine(const void* parameters, DType dtype, int64_t channel, double otherwise) {
  return static_cast<Compute<T>>(parameter<T>(parameters, dtype, channel, otherwise));
}

// y = activation((x - center) * scale + shift + residual): see Normalize.
template <class A, int kArrays>
struct ActivatedNormalize {
  static constexpr int kInputs = kArrays, kCoefficients = 3;  // x, residual; center, scale, shift
  static constexpr bool kOfVectors = true, kOptional = kArrays > 1;
  Activate<A> activation;

  template <int kSize, class K>
  __device__ void apply(const A (&in)[kArrays][kSize], const K& k, A (&y)[kSize]) const {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      y[i] = fma(in[0][i] - k(i)[0], k(i)[1], k(i)[2]);
      if constexpr (kArrays > 1) y[i] += in[1][i];
    }
    activation.apply(y);
  }
};

// dx = (g * weight + level + xhat * slope) * rstd, with g = dy * activation'(xhat * weight + bias + residual), which
// takes the place of dy.
template <class A, int kArrays>
struct ActivatedGradient {
  static constexpr int kInputs = kArrays, kCoefficients = 6;  // dy, x, residual; mean, rstd, weight, bias, slope, level
  static constexpr bool kOfVectors = true, kOptional = kArrays > 2;
  Activate<A> activation;

  template <int kSize, class K>
  __device__ void apply(A (&in)[kArrays][kSize], const K& k, A (&dx)[kSize]) const {
    A xhat[kSize], z[kSize];
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      xhat[i] = (in[1][i] - k(i)[0]) * k(i)[1];
      z[i] = fma(xhat[i], k(i)[2], k(i)[3]);
      if constexpr (kArrays > 2) z[i] += in[2][i];
    }
    activation.differentiate(z, in[0]);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      // In evaluation the slope is zero, and xhat may be infinite.
      const A slope = k(i)[4], sloped = slope == 0 ? A(0) : xhat[i];
      dx[i] = fma(sloped, slope, fma(in[0][i], k(i)[2], k(i)[5])) * k(i)[1];
    }
  }
};

// The same, of which g is stored too: it is the residual's gradient. That may be all that is asked for.
template <class T>
struct ActivatedGradients : ActivatedGradient<Compute<T>, 3> {
  T* beside;
};

// What the sums backward read.
template <class T, int kArrays>
struct ActivatedInputs : Inputs<T, kArrays, (kArrays > 2)> {
  Activate<Compute<T>> activation;
};

}  // namespace normext::cuda
