// sums.cuh -- what the norms sum over rows and channels that are not kept on chip, and how exactly.
//
// A thread adds short sums of its compute type, one for each tile of values, to float64 totals; from there on
// everything is float64: partial results of threads and blocks simply add up.
#pragma once
#include "cuda/elements/numerics.cuh"
#include "cuda/elements/vec.cuh"

namespace normext::cuda {

// The mean of the first `count` values, about: a shift may be any value near.
template <class A, int kSize>
__device__ A mean_of(const A (&x)[kSize], int count) {
  const A inverse = __fdividef(1.0f, static_cast<float>(count));
  A difference = 0, plain = 0;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    difference += i < count ? x[i] - x[0] : A(0);  // of equal values: zero, exactly
    plain += i < count ? x[i] * inverse : A(0);    // of values at both ends of the range: not infinite
  }
  const A exact = x[0] + difference * inverse;
  return finite_or(exact, finite_or(plain, A(0)));
}

// Sums of d and d^2 over the first `count` values, for d = (x - shift) * scale, which is a power of two.
template <class A, int kSize>
__device__ void sum_powers(const A (&x)[kSize], int count, A shift, A scale, A& first, A& second) {
  first = second = 0;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const A d = i < count ? fma(x[i], scale, -(shift * scale)) : A(0);
    first += d;
    second = fma(d, d, second);
  }
}

// Turns the sums of d and d^2 over n values, for d = x - shift, into those for d = x - common_shift.
template <class A>
__device__ void change_shift(A shift, A common_shift, double n, double (&sums)[2]) {
  const double offset = static_cast<double>(shift) - static_cast<double>(common_shift), first = sums[0];
  sums[0] = first + n * offset;
  sums[1] += offset * (2 * first + n * offset);
}

// Sums of d and d^2, for d = x - shift with a shift of the thread's own: the mean of its first tile, near which a
// float32 difference is exact enough. totals() gives them for the shift that all threads agree on. That one is a value
// of the channel, so even if it is an outlier it adds its share to the variance, and the relative error of
// second - first^2 / n stays below n * 2^-53.
template <class A>
class MomentSums {
 public:
  static constexpr int kInputs = 1, kSums = 2, kCoefficients = 1;  // x; the common shift

  __device__ void start(const A (&)[1]) {}

  // The first `count` values of a tile; count > 0.
  template <int kSize>
  __device__ void add(const A (&in)[1][kSize], int count) {
    if (count_ == 0) shift_ = mean_of(in[0], count);
    A first, second;
    sum_powers(in[0], count, shift_, A(1), first, second);
    const A scale = scale_for(second, shift_);
    double factor = 1;
    if (scale != 1) {  // differences or squares that the type cannot hold
      sum_powers(in[0], count, shift_, scale, first, second);
      factor = inverse_scale(scale);
    }
    first_ = fma(static_cast<double>(first), factor, first_);
    second_ = fma(static_cast<double>(second) * factor, factor, second_);
    count_ += count;
  }

  __device__ void totals(const A (&common_shift)[1], double (&out)[2]) const {
    out[0] = first_;
    out[1] = second_;
    if (count_ > 0) change_shift(shift_, common_shift[0], static_cast<double>(count_), out);
  }

 private:
  double first_ = 0, second_ = 0;
  int64_t count_ = 0;
  A shift_ = 0;
};

// The sum of squares.
template <class A>
class SquareSums {
 public:
  static constexpr int kInputs = 1, kSums = 1, kCoefficients = 1;  // x; zero

  __device__ void start(const A (&)[1]) {}

  template <int kSize>
  __device__ void add(const A (&in)[1][kSize], int count) {
    A sum = squares_of(in[0], count, A(1));
    const A scale = scale_for(sum, A(0));
    double factor = 1;
    if (scale != 1) {
      sum = squares_of(in[0], count, scale);
      factor = inverse_scale(scale);
    }
    sum_ = fma(static_cast<double>(sum) * factor, factor, sum_);
  }

  __device__ void totals(const A (&)[1], double (&out)[1]) const { out[0] = sum_; }

 private:
  template <int kSize>
  __device__ static A squares_of(const A (&x)[kSize], int count, A scale) {
    A first, second;
    sum_powers(x, count, A(0), scale, first, second);
    return second;
  }

  double sum_ = 0;
};

struct Moments {
  double mean, variance;

  // From the sums over 1 / inverse_n values.
  __device__ static Moments of(const double (&sums)[2], double shift, double inverse_n) {
    const double offset = sums[0] * inverse_n, variance = (sums[1] - offset * sums[0]) * inverse_n;
    return {shift + offset, variance < 0 ? 0 : variance};  // NaN stays NaN
  }
};

// Sums of g, g * xhat and xhat, for xhat = (x - mean) * rstd: see CenteredSums for the last.
template <class A>
class GradientSums {
 public:
  static constexpr int kInputs = 2, kSums = 3, kCoefficients = 2;  // g, x; mean, rstd

  __device__ void start(const A (&k)[2]) {
    mean_ = k[0];
    rstd_ = k[1];
  }

  template <int kSize>
  __device__ void add(const A (&in)[2][kSize], int count) {
    A g = 0, g_xhat = 0, xhat = 0;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const A normalized = i < count ? (in[1][i] - mean_) * rstd_ : A(0);
      if (i < count) g += in[0][i];
      g_xhat = fma(in[0][i], normalized, g_xhat);
      xhat += normalized;
    }
    sums_[0] += g;
    sums_[1] += g_xhat;
    sums_[2] += xhat;
  }

  __device__ void totals(const A (&)[2], double (&out)[3]) const {
#pragma unroll
    for (int k = 0; k < 3; ++k) out[k] = sums_[k];
  }

 protected:
  A mean_ = 0, rstd_ = 0;

 private:
  double sums_[3] = {};
};

// The same of a norm that an activation follows, perhaps with a residual added before it: dy becomes g by its
// derivative.
template <class A, int kArrays>
class ActivatedGradientSums : public GradientSums<A> {
 public:
  static constexpr int kInputs = kArrays, kCoefficients = 4;  // dy, x, residual; mean, rstd, weight, bias

  __device__ void start(const A (&k)[4]) {
    GradientSums<A>::start({k[0], k[1]});
    weight_ = k[2];
    bias_ = k[3];
  }

  template <class Activation, int kSize>
  __device__ void activate(const Activation& activation, A (&in)[kArrays][kSize]) const {
    A z[kSize];
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      z[i] = fma((in[1][i] - this->mean_) * this->rstd_, weight_, bias_);
      if constexpr (kArrays > 2) z[i] += in[2][i];
    }
    activation.differentiate(z, in[0]);
  }

  template <int kSize>
  __device__ void add(const A (&in)[kArrays][kSize], int count) {
    A g_and_x[2][kSize];
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      g_and_x[0][i] = in[0][i];
      g_and_x[1][i] = in[1][i];
    }
    GradientSums<A>::add(g_and_x, count);
  }
  __device__ void totals(const A (&)[4], double (&out)[3]) const { GradientSums<A>::totals({}, out); }

 private:
  A weight_ = 0, bias_ = 0;
};

// The sum of g * xhat, for xhat = x * rstd.
template <class A>
class UncenteredGradientSums {
 public:
  static constexpr int kInputs = 2, kSums = 1, kCoefficients = 1;  // g, x; rstd

  __device__ void start(const A (&k)[1]) { rstd_ = k[0]; }

  template <int kSize>
  __device__ void add(const A (&in)[2][kSize], int count) {
    A sum = 0;
#pragma unroll
    for (int i = 0; i < kSize; ++i)
      if (i < count) sum = fma(in[0][i], in[1][i] * rstd_, sum);
    sum_ += sum;
  }

  __device__ void totals(const A (&)[1], double (&out)[1]) const { out[0] = sum_; }

 private:
  A rstd_ = 0;
  double sum_ = 0;
};

// The sum of xhat would be zero, were the saved mean not rounded: offset tells by how much, in units of the deviation,
// and g_xhat is the sum of g * (xhat - offset). That keeps gradients right where the mean is far from zero.
struct CenteredSums {
  double offset, g_xhat;

  // From sums of g, g * xhat and xhat over 1 / inverse_n values.
  __device__ static CenteredSums of(const double (&sums)[3], double inverse_n, bool center) {
    const double offset = center ? sums[2] * inverse_n : 0;
    return {offset, sums[1] - offset * sums[0]};
  }
};

}  // namespace normext::cuda
