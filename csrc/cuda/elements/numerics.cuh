// numerics.cuh -- which squares can be summed as they are, and the reciprocal root.
#pragma once
#include <cmath>

#include "cuda/elements/platform.cuh"

namespace normext::cuda {

// What values are taken about must not make a difference: an infinite one would turn the others into NaN.
template <class A>
__device__ A finite_or(A value, A otherwise) {
  return value - value == 0 ? value : otherwise;
}

// Squares leave the range of a type long before its values do: 1e30 squared is beyond float32. Where a sum of squares
// lies outside [kLeast, kMost], the values are scaled by a power of two, which rounds nothing, and squared again.
template <class A>
struct Squares;
template <>
struct Squares<float> {
  static constexpr float kLeast = 0x1p-90f, kMost = 0x1p120f, kScale = 0x1p100f;
  // A mean of at least this is so far from zero that its smallest differences have squares above kLeast.
  static constexpr float kSmallMean = 0x1p-20f;
  // Beside an eps of at least this, what is lost of a small variance by not scaling it is nothing.
  static constexpr float kSmallEps = 0x1p-100f;
};
template <>
struct Squares<double> {
  static constexpr double kLeast = 0x1p-600, kMost = 0x1p1000, kScale = 0x1p600, kSmallMean = 0x1p-200,
                          kSmallEps = 0x1p-200;
};

// The scale that a sum of squared differences from `mean` asks for: 1 where it is as exact as it gets.
template <class A>
__device__ A scale_for(A sum_of_squares, A mean) {
  using S = Squares<A>;
  if (sum_of_squares < S::kLeast) return fabs(mean) < S::kSmallMean ? S::kScale : A(1);
  return sum_of_squares <= S::kMost ? A(1) : 1 / S::kScale;
}

// Whether that is 1; without a branch.
template <class A>
__device__ bool is_exact(A sum_of_squares, A mean) {
  using S = Squares<A>;
  return (sum_of_squares <= S::kMost) & ((sum_of_squares >= S::kLeast) | (fabs(mean) >= S::kSmallMean));
}

// Of one of scale_for's scales.
template <class A>
__device__ A inverse_scale(A scale) {
  using S = Squares<A>;
  return scale == 1 ? A(1) : scale == S::kScale ? 1 / S::kScale : S::kScale;
}

__device__ inline float reciprocal_root(float v) { return __frsqrt_rn(v); }
__device__ inline double reciprocal_root(double v) { return rsqrt(v); }

}  // namespace normext::cuda
