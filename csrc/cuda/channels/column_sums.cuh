// column_sums.cuh -- what a thread sums over the rows of one column, before the float64 totals.
//
// As sums.cuh's, but many to a thread: a few registers each. take() hands over the sums of the last few rows and starts
// anew; who calls it keeps the totals.
#pragma once
#include "cuda/elements/sums.cuh"

namespace normext::cuda {

// Rows between two calls of take(), a multiple of every tile. Values of half types have so few digits that the sums of
// many are exact enough; of float32, a tile's. float64 sums in stretches because errors grow with their length.
template <class T, int kTile>
constexpr int kRowsBetween = sizeof(T) == 4 ? kTile : 64;

// Sums of d and d^2, for d = x - shift with a shift of the thread's own: see MomentSums.
template <class T>
class ColumnMoments {
  using A = Compute<T>;

 public:
  static constexpr int kInputs = 1, kSums = 2, kCoefficients = 1;  // x; the common shift
  static constexpr int kTile = 8;                                  // rows
  static constexpr bool kOwnShift = true;
  // Squares of bfloat16 and float32 leave the range of float32, those of float16 do not; float64 has nothing wider.
  static constexpr bool kRecounts = !std::is_same_v<A, double> && !std::is_same_v<T, __half>;

  // A shift of the type of the values makes most differences of half types exact, and their sums.
  __device__ void start(const A (&)[1], const A (&in)[1][kTile]) {
    if constexpr (kRecounts) {
      A difference = 0;
#pragma unroll
      for (int t = 1; t < kTile; ++t) difference += in[0][t] - in[0][0];
      // Where it is not finite, with values at both ends of the range, they are counted again: about any other.
      shift_ = finite_or(widen(narrow<T>(in[0][0] + difference * (A(1) / kTile))), finite_or(in[0][0], A(0)));
    } else {
      shift_ = widen(narrow<T>(mean_of(in[0], kTile)));
    }
  }

  __device__ void add(const A (&in)[1]) {
    const A d = in[0] - shift_;
    first_ += d;
    second_ = fma(d, d, second_);
  }

  // False, and sums of zero, where differences or squares are such as the type cannot hold: then the rows must be
  // counted again. Where both sums are zero, all differences are, or so small that only an eps of zero could tell.
  __device__ bool take(double (&out)[2]) {
    const bool exact = !kRecounts | is_exact(second_, shift_) | ((first_ == 0) & (second_ == 0));
    out[0] = exact ? first_ : A(0);
    out[1] = exact ? second_ : A(0);
    first_ = second_ = 0;
    return exact;
  }
  __device__ void recount(const A (&in)[1], double (&sums)[2]) const {
    const double d = static_cast<double>(in[0]) - static_cast<double>(shift_);
    sums[0] += d;
    sums[1] = fma(d, d, sums[1]);
  }

  // Makes the totals over `count` rows those that all threads agree on.
  __device__ void finish(const A (&common_shift)[1], int count, double (&totals)[2]) const {
    if (count > 0) change_shift(shift_, common_shift[0], count, totals);
  }

 private:
  A shift_ = 0, first_ = 0, second_ = 0;
};

// Sums of g, g * xhat and xhat: see GradientSums.
template <class T>
class ColumnGradients {
  using A = Compute<T>;

 public:
  static constexpr int kInputs = 2, kSums = 3, kCoefficients = 2;  // g, x; mean, rstd
  static constexpr int kTile = 4;
  static constexpr bool kOwnShift = false, kRecounts = false;

  __device__ void start(const A (&k)[2], const A (&)[2][kTile]) {
    mean_ = k[0];
    rstd_ = k[1];
  }

  __device__ void add(const A (&in)[2]) {
    const A xhat = (in[1] - mean_) * rstd_;
    sums_[0] += in[0];
    sums_[1] = fma(in[0], xhat, sums_[1]);
    sums_[2] += xhat;
  }

  __device__ bool take(double (&out)[3]) {
#pragma unroll
    for (int s = 0; s < 3; ++s) {
      out[s] = sums_[s];
      sums_[s] = 0;
    }
    return true;
  }

 protected:
  A mean_ = 0, rstd_ = 0;

 private:
  A sums_[3] = {};
};

// The same of a norm that an activation follows: see ActivatedGradientSums.
template <class T, int kArrays>
class ActivatedColumnGradients : public ColumnGradients<T> {
  using A = Compute<T>;

 public:
  static constexpr int kInputs = kArrays, kCoefficients = 4;  // dy, x, residual; mean, rstd, weight, bias

  __device__ void start(const A (&k)[4], const A (&)[kArrays][ColumnGradients<T>::kTile]) {
    ColumnGradients<T>::start({k[0], k[1]}, {});
    weight_ = k[2];
    bias_ = k[3];
  }
  // What the norm makes of x.
  __device__ A before_activation(A x) const { return fma((x - this->mean_) * this->rstd_, weight_, bias_); }

 private:
  A weight_ = 0, bias_ = 0;
};

}  // namespace normext::cuda
