// row_statistics.cuh -- what LayerNorm and RMSNorm differ in, a type for each: Centered and Uncentered. The kernels of
// rows take one of the two as a template argument; or Either, where kernels are so rarely asked for that one is built
// for both, which asks the op once a row. Each of them says
//
//   kParameters, affine()           which arrays of parameters there are, and what they do to a normalized value;
//   kForwardSums, OfRow             what is summed over a row in registers, and the statistics that come of the sums;
//   OfParts                         the same of a row whose parts are summed by blocks of a cluster;
//   Normalization                   how a value is normalized;
//   kBackwardSums, Saved, Gradient  what backward finds saved of a row, what it sums, and the gradient that comes of
//   it; the rest                        the same of rows that do not fit on chip, whose sums are float64.
#pragma once
#include "cuda/elements/numerics.cuh"
#include "cuda/elements/partials.cuh"
#include "cuda/elements/sums.cuh"
#include "cuda/rows/row_places.cuh"
#include "ops/row_norm.h"

namespace normext::cuda {

// A row's variance, of its values times scale: see scale_for().
template <class A>
struct ScaledVariance {
  A scale = 1;
  A variance;

  __device__ A scaled_rstd(A eps) const {  // times scale: rstd
    const A back = inverse_scale(scale);
    if (scale > 1 && eps >= Squares<A>::kSmallEps) return reciprocal_root(variance * back * back + eps) * back;
    return reciprocal_root(variance + eps * scale * scale);
  }
};

// What a long row's moments are taken about: its first value, or its mean as found before.
template <class X>
struct RowShift {
  const X* input;
  const Compute<X>* mean;
  RowPlaces places;

  __device__ void operator()(int64_t row, Compute<X> (&k)[1]) const {
    k[0] = finite_or(mean ? mean[row] : widen(input[places[row]]), Compute<X>(0));
  }
};

// The statistics of a row: of values * scale, where the values' squares cannot be summed as they are. Of a row that
// does not exist: anything.
template <class OfRow, bool kShareBarriers, bool kPacked = false, class ARow, class GroupSum, class A>
__device__ OfRow row_statistics(ARow& row, bool exists, bool centered, A inverse_n, GroupSum& group_sum) {
  // The first round has code of its own, without the scale, where that is worth a larger kernel: squares alone need no
  // multiplication then, and packed halves in registers are not kept widened for a second round.
  constexpr int kCopies = kPacked || OfRow::kSquaresAlone ? 2 : 1;
  OfRow s;
#pragma unroll kCopies
  for (bool again = false;; again = true) {
    const A scale = s.measure(row, centered, inverse_n, group_sum);
    if (again) return s;
    s.scale = scale;
    // Rows that share a warp, or a block's barriers, go round together, since all must take part. A scale of 1 changes
    // nothing.
    const bool wants = exists && s.scale != 1;
    if (!(kShareBarriers ? __syncthreads_or(wants) : __any_sync(0xffffffffu, wants))) return s;
  }
}

// ------------------------------------------------------------------------------------------------ LayerNorm
// Centered rows, or, if kEither, those that the op says are.
template <bool kEither>
struct CenteredRows {
  static constexpr int kParameters = 2;  // weight, bias
  static constexpr int kForwardSums = 2, kBackwardSums = 3;
  static constexpr bool kKeepsZeros = false;  // a zero less the mean is none: what lies behind a row's end must be told

  template <class Op>
  __device__ static bool is_centered(const Op& op) {
    return !kEither || op.statistics == RowStatistics::centered;
  }

  template <class A, int kSize>
  __device__ static A affine(A xhat, const A (&weight_bias)[2][kSize], int i) {
    return fma(xhat, weight_bias[0][i], weight_bias[1][i]);
  }

  // (x - center) * rstd + shift: what the rounding of the mean to center has left out is in the shift.
  template <class A>
  struct Normalization {
    A center, rstd, shift;

    __device__ A of_difference(A difference) const { return fma(difference, rstd, shift); }
    __device__ A operator()(A x) const { return of_difference(x - center); }
  };

  template <class A>
  struct OfRow : ScaledVariance<A> {
    static constexpr bool kSquaresAlone = false;
    A center, low;  // the mean, in two parts: center is it rounded, and what a single A cannot hold of it is in low

    // First the mean, as the mean of differences from the row's first value: so a constant row leaves zeros, and a mean
    // far from zero its last digits. Then the variance, about that mean. Returns the scale that the row asks for.
    template <class Row, class GroupSum>
    __device__ A measure(Row& row, bool centered, A inverse_n, GroupSum& group_sum) {
      center = 0;
      if (centered) {
        const A first = widen(row.first) * this->scale;
        A total[1];
        row.sum(this->scale, first, [](A d, A(&out)[1]) { out[0] = d; }, total);
        group_sum(total);
        center = first + total[0] * inverse_n;
      }

      A sums[2];
      row.sum(
          this->scale, center,
          [](A d, A(&out)[2]) {
            out[0] = d;
            out[1] = d * d;
          },
          sums);
      group_sum(sums);
      low = centered ? sums[0] * inverse_n : A(0);
      const A variance = sums[1] * inverse_n - low * low;
      this->variance = variance < 0 ? 0 : variance;  // NaN stays NaN
      return scale_for(sums[1], center);
    }

    __device__ Normalization<A> normalization(A scaled_rstd) const { return {center, scaled_rstd, -low * scaled_rstd}; }
    __device__ void store(const RowNormForward& op, int64_t row, A scaled_rstd) const {
      if (is_centered(op)) static_cast<A*>(op.mean)[row] = (center + low) * inverse_scale(this->scale);
      static_cast<A*>(op.rstd)[row] = scaled_rstd * this->scale;
    }
  };

  // Of a row whose parts blocks have: each takes the statistics of its own, and they are put together, as seen from the
  // first part's mean. So blocks wait for each other once; each keeps a center of its own, whose distance from the
  // row's mean is in low.
  template <class A>
  struct OfParts : OfRow<A> {
    template <class Row, class Sum>
    __device__ A measure(Row& row, bool centered, A inverse_n, Sum& sum) {
      OfRow<A>::measure(row, centered, A(1) / static_cast<A>(row.part.columns), sum.of_block);
      const auto* const parts = sum.exchange({this->center, this->low, this->variance, 0});
      const A about = parts[0].x;
      A difference = 0, squares = 0;
#pragma unroll 1
      for (int b = 0, first = 0; first < row.part.all; ++b, first += row.part.share)
        difference += ((parts[b].x - about) + parts[b].y) * static_cast<A>(row.part.columns_of(first));
      difference *= inverse_n;
#pragma unroll 1
      for (int b = 0, first = 0; first < row.part.all; ++b, first += row.part.share) {
        const A offset = ((parts[b].x - about) + parts[b].y) - difference;
        squares += fma(offset, offset, parts[b].z) * static_cast<A>(row.part.columns_of(first));
      }
      this->low = difference - (this->center - about);
      this->variance = squares * inverse_n;
      return scale_for(squares, about);
    }
  };

  template <class A>
  struct Saved {
    A mean = 0, rstd = 0;

    __device__ static Saved load(const RowNormBackward& op, int64_t row) {
      return {is_centered(op) ? static_cast<const A*>(op.mean)[row] : A(0), static_cast<const A*>(op.rstd)[row]};
    }
    __device__ A xhat(A x) const { return (x - mean) * rstd; }
  };

  // grad_input = (g + level + xhat * slope) * rstd, with xhat = (x - mean) * rstd - offset. The offset would be zero,
  // were the saved mean not rounded. Taking it into account keeps gradients right where the mean is far from zero.
  template <class A>
  struct Gradient {
    A offset, slope, level;

    // Sums of g, g * xhat and xhat.
    __device__ static void add(A g, A xhat, A (&sums)[3]) {
      sums[0] += g;
      sums[1] = fma(g, xhat, sums[1]);
      sums[2] += xhat;
    }
    __device__ static Gradient of(const A (&sums)[3], bool centered, A inverse_n) {
      if (!centered) return {0, -sums[1] * inverse_n, 0};
      const A offset = sums[2] * inverse_n;
      return {offset, -(sums[1] - offset * sums[0]) * inverse_n, -sums[0] * inverse_n};
    }

    __device__ A corrected(A xhat) const { return xhat - offset; }
    __device__ A operator()(A g, A corrected_xhat) const { return fma(corrected_xhat, slope, g + level); }
  };

  // ---------------------------------------------------------------------------------------------- long rows
  template <class A>
  using LongSums = MomentSums<A>;
  // float64 has nothing wider to be summed in: once more, about the mean.
  template <class A>
  static constexpr int kPasses = sizeof(A) == 8 ? 2 : 1;

  // What the sums are taken about, of rows of X.
  template <class X>
  static RowShift<X> start(const RowNormForward& op, int pass) {
    return {static_cast<const X*>(op.input), pass == 0 ? nullptr : static_cast<const Compute<X>*>(op.mean),
            RowPlaces(op.input_strides, op.rows)};
  }
  // Stores a row's statistics.
  template <class A>
  __device__ static Normalization<A> finish(const RowNormForward& op, int64_t row, const double (&sums)[2], A shift,
                                            double inverse_n) {
    const auto moments = Moments::of(sums, shift, inverse_n);
    const double rstd = reciprocal_root(moments.variance + op.eps);
    const A center = static_cast<A>(moments.mean);
    static_cast<A*>(op.mean)[row] = center;
    static_cast<A*>(op.rstd)[row] = static_cast<A>(rstd);
    return {center, static_cast<A>(rstd), static_cast<A>((static_cast<double>(center) - moments.mean) * rstd)};
  }

  template <class A>
  using LongGradientSums = GradientSums<A>;

  template <class A>
  static SavedStatistics<A> start(const RowNormBackward& op) {
    return {static_cast<const A*>(op.mean), static_cast<const A*>(op.rstd)};
  }
  template <class A>
  __device__ static Gradient<A> finish(const double (&sums)[3], double inverse_n) {
    const auto c = CenteredSums::of(sums, inverse_n, true);
    return {static_cast<A>(c.offset), static_cast<A>(-c.g_xhat * inverse_n), static_cast<A>(-sums[0] * inverse_n)};
  }
};

struct Centered : CenteredRows<false> {};
struct Either : CenteredRows<true> {};

// ------------------------------------------------------------------------------------------------ RMSNorm
// About zero: squares alone are summed, there is no mean to store, and nothing is added behind the weight. RMSNorm with
// a bias, as the shift of an adaptive norm, is left to Either; but long rows take it.
struct Uncentered {
  static constexpr int kParameters = 1;  // weight
  static constexpr int kForwardSums = 1, kBackwardSums = 1;
  static constexpr bool kKeepsZeros = true;

  template <class Op>
  __device__ static bool is_centered(const Op&) {
    return false;
  }

  template <class A, int kSize>
  __device__ static A affine(A xhat, const A (&weight)[1][kSize], int i) {
    return xhat * weight[0][i];
  }

  template <class A>
  struct Normalization {
    static constexpr A center = 0;
    A rstd;

    __device__ A of_difference(A difference) const { return difference * rstd; }
    __device__ A operator()(A x) const { return x * rstd; }
  };

  template <class A>
  struct OfRow : ScaledVariance<A> {
    static constexpr bool kSquaresAlone = true;

    template <class Row, class GroupSum>
    __device__ A measure(Row& row, bool, A inverse_n, GroupSum& group_sum) {
      A squares[1];
      row.sum(this->scale, A(0), [](A x, A(&out)[1]) { out[0] = x * x; }, squares);
      group_sum(squares);
      this->variance = squares[0] * inverse_n;
      return scale_for(squares[0], A(0));
    }

    __device__ Normalization<A> normalization(A scaled_rstd) const { return {scaled_rstd}; }
    __device__ void store(const RowNormForward& op, int64_t row, A scaled_rstd) const {
      static_cast<A*>(op.rstd)[row] = scaled_rstd * this->scale;
    }
  };
  template <class A>
  using OfParts = OfRow<A>;  // squares add up

  template <class A>
  struct Saved {
    A rstd = 0;

    __device__ static Saved load(const RowNormBackward& op, int64_t row) {
      return {static_cast<const A*>(op.rstd)[row]};
    }
    __device__ A xhat(A x) const { return x * rstd; }
  };

  // grad_input = (g + xhat * slope) * rstd
  template <class A>
  struct Gradient {
    A slope;

    // The sum of g * xhat.
    __device__ static void add(A g, A xhat, A (&sums)[1]) { sums[0] = fma(g, xhat, sums[0]); }
    __device__ static Gradient of(const A (&sums)[1], bool, A inverse_n) { return {-sums[0] * inverse_n}; }

    __device__ A corrected(A xhat) const { return xhat; }
    __device__ A operator()(A g, A xhat) const { return fma(xhat, slope, g); }
  };

  // ---------------------------------------------------------------------------------------------- long rows
  template <class A>
  using LongSums = SquareSums<A>;
  template <class A>
  static constexpr int kPasses = 1;

  template <class T>
  static Origin<Compute<T>> start(const RowNormForward&, int) {
    return {};
  }
  template <class A>
  __device__ static Normalization<A> finish(const RowNormForward& op, int64_t row, const double (&sums)[1], A,
                                            double inverse_n) {
    const A rstd = static_cast<A>(reciprocal_root(sums[0] * inverse_n + op.eps));
    static_cast<A*>(op.rstd)[row] = rstd;
    return {rstd};
  }

  template <class A>
  using LongGradientSums = UncenteredGradientSums<A>;

  template <class A>
  static SavedRstd<A> start(const RowNormBackward& op) {
    return {static_cast<const A*>(op.rstd)};
  }
  template <class A>
  __device__ static Gradient<A> finish(const double (&sums)[1], double inverse_n) {
    return {static_cast<A>(-sums[0] * inverse_n)};
  }
};

// Calls f(Type<Statistics>{}).
template <class F>
void with_statistics(RowStatistics statistics, const F& f) {
  switch (statistics) {
    case RowStatistics::centered:
      return f(Type<Centered>{});
    case RowStatistics::uncentered:
      return f(Type<Uncentered>{});
  }
}

}  // namespace normext::cuda
