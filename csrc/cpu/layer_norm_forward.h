// layer_norm_forward.h -- LayerNorm forward on the CPU. A row stays in cache between the pass that sums it and the pass
// that writes.
#pragma once
#include <tuple>
#include <utility>

#include "rows.h"

namespace normext::cpu::NORMEXT_ISA {

// Sums of d and d^2, d = x - shift; by dot products shift is zero. kAhead as in Inputs, here and below.
template <class Sum, int64_t kAhead = 0, class T>
std::pair<double, double> sums_about(Scalar<T> shift, const T* x, int64_t count) {
  const T* const in[1] = {x};
  Doubles sums[2] = {};
  RunSums<Sum, T, Inputs<T, 1, kAhead>>(Inputs<T, 1, kAhead>(in), 0, count, {shift}, sums).finish();
  return {sum(sums[0]), sum(sums[1])};
}

// A value near the mean: at least a vector of elements is there.
template <class T>
Scalar<T> guess(const T* x) {
  return static_cast<Scalar<T>>(sum(widen(load(x))) / kLanes);
}

// Of `count` elements, at least one, in float64.
template <class T>
Moments wide_moments_of(const T* x, int64_t count) {
  Scalar<T> shift = load_one(x);
  auto [first, second] = sums_about<WideMomentSums<T>>(shift, x, count);
  if (kTwoPasses<T>) {
    shift += first / count;
    std::tie(first, second) = sums_about<WideMomentSums<T>>(shift, x, count);
  }
  return moments_from_sums(count, shift, first, second);
}

// In float32, about a guess, if that is sound.
template <int64_t kAhead = 0, class T>
Moments guessed_moments_of(const T* x, int64_t count, double eps) {
  const auto shift = guess(x);
  const auto [first, second] = sums_about<MomentSums<T>, kAhead>(shift, x, count);
  return sound(count, first, second, eps) ? moments_from_sums(count, shift, first, second) : wide_moments_of(x, count);
}

template <int64_t kAhead, class T>
Moments moments_of(const T* x, int64_t count, double eps) {
  if (kTwoPasses<T> || count < kFew) return wide_moments_of(x, count);
  if constexpr (kDotSums<T>) {
    const auto [first, second] = sums_about<DotMomentSums, kAhead>(0, x, count);
    if (sound(count, first, second, 0)) return moments_from_sums(count, 0, first, second);
  }
  return guessed_moments_of<kAhead>(x, count, eps);
}

template <class T, class P>
struct LayerNormRows {
  using S = Scalar<T>;
  using V = Vector<T>;

  const T* input;
  const P *weight, *bias;
  T* output;
  S *mean, *rstd;
  int64_t rows, columns;
  double eps;

  explicit LayerNormRows(const LayerNormForward& op)
      : input(static_cast<const T*>(op.input)),
        weight(static_cast<const P*>(op.weight)),
        bias(static_cast<const P*>(op.bias)),
        output(static_cast<T*>(op.output)),
        mean(static_cast<S*>(op.mean)),
        rstd(static_cast<S*>(op.rstd)),
        rows(op.rows),
        columns(op.columns),
        eps(op.eps) {}

  template <int64_t kAhead = 0>
  Moments piece_moments(int64_t row, int64_t piece) const {
    return moments_of<kAhead>(input + row * columns + piece * kPiece, piece_length(columns, piece), eps);
  }

  // Columns [begin, end) of a row's output, xhat(x) * weight + bias, where the row's output begins at `to`. If `ahead`
  // is not 0, it asks for what lies so many elements ahead.
  template <bool kStream, class F>
  NORMEXT_INLINE void write(int64_t row, T* to, int64_t begin, int64_t end, int64_t ahead, const F& xhat) const {
    const V one = broadcast(S{1}), zero = broadcast(S{0});
    const T* x = input + row * columns;
    map_vectors<kStream>(
        to, begin, end,
        [&, w = weight, b = bias](int64_t at, int64_t count) NORMEXT_INLINE {
          return fma(xhat(load(x + at, count)), load_or(w, at, count, one), load_or(b, at, count, zero));
        },
        [=](int64_t at) NORMEXT_INLINE {
          if (ahead) __builtin_prefetch(x + at + ahead, 0, 2);
        });
  }

  // xhat is (x - mean) * rstd. The mean is split into high + low: float32 cannot hold it all where it is far from zero,
  // and the difference must be exact. Half types do without where it is near.
  template <bool kStream>
  void normalize(int64_t row, T* to, double mean, double rstd, int64_t begin, int64_t end, int64_t ahead = 0) const {
    const V scale = broadcast(static_cast<S>(rstd));
    if (sizeof(T) == 2 && near_zero(mean, rstd)) {
      const V shift = broadcast(static_cast<S>(-mean * rstd));
      return write<kStream>(row, to, begin, end, ahead, [=](V x) NORMEXT_INLINE { return fma(x, scale, shift); });
    }
    const auto high = static_cast<S>(mean);
    const V center = broadcast(high), shift = broadcast(static_cast<S>((high - mean) * rstd));
    write<kStream>(row, to, begin, end, ahead, [=](V x) NORMEXT_INLINE { return fma(x - center, scale, shift); });
  }

  // For `count` rows, or as many as have their two sums in one vector: a shift, and sums of d and d^2, d = x - shift.
  // The lanes of all are summed in the same instructions.
  static constexpr int kRowsSummed = kLanes / 2;
  void short_row_sums(const T* x, int64_t count, double* shift, double* first, double* second) const {
    Floats lanes[kLanes] = {};
    float near[kLanes] = {};
    if constexpr (!kDotSums<T>) {
      for (int r = 0; r < kRowsSummed && r < count; ++r) lanes[r] = load(x + r * columns);
      store(near, sum_each(lanes) * (1.0f / kLanes));
    }
    Doubles totals{};
    for (int64_t at = 0, stop; at < columns; at = stop) {
      stop = std::min(columns, at + kShort / 2 * kLanes);  // the sums of lanes are float32's, too
      for (int r = 0; r < kRowsSummed && r < count; ++r) {
        const T* const in[1] = {x + r * columns};
        if constexpr (kDotSums<T>) {
          const auto short_sums = short_dot_sum<DotMomentSums, 0>(in, 0, at, stop);
          lanes[r] = short_sums.sums[0];
          lanes[r + kRowsSummed] = short_sums.sums[1];
        } else {
          const Floats k[1] = {broadcast(near[r])};
          const auto short_sums = short_sum<MomentSums<T>>(0, at, stop, Inputs<T, 1>(in), k);
          lanes[r] = short_sums.first;
          lanes[r + kRowsSummed] = short_sums.second;
        }
      }
      totals += widen(sum_each(lanes));
    }
    for (int r = 0; r < kRowsSummed; ++r) shift[r] = near[r];
    store_raw(first, totals.low);
    store_raw(second, totals.high);
  }

  // Means and variances of `count` rows of one piece. The steps that wait for each other are taken for all rows at
  // once.
  void statistics(int64_t first_row, int64_t count, double (&means)[kRowsTogether],
                  double (&vars)[kRowsTogether]) const {
    const double n = static_cast<double>(columns);
    double shift[kRowsTogether] = {}, first[kRowsTogether] = {}, second[kRowsTogether] = {};
    int64_t is_sound[kRowsTogether];
    const T* x = input + first_row * columns;
    if (columns <= kShort * kLanes) {
      for (int64_t r = 0; r < count; r += kRowsSummed)
        short_row_sums(x + r * columns, count - r, shift + r, first + r, second + r);
    } else {
      for (int64_t r = 0; r < count; ++r) {
        if constexpr (kDotSums<T>) {
          std::tie(first[r], second[r]) = sums_about<DotMomentSums>(0, x + r * columns, columns);
        } else {
          const S near = guess(x + r * columns);
          shift[r] = near;
          std::tie(first[r], second[r]) = sums_about<MomentSums<T>>(near, x + r * columns, columns);
        }
      }
    }
    using Rows = Doubles::Half;
    for (int64_t r = 0; r < kRowsTogether; r += kRowsSummed) {
      const auto s = load_raw<Rows>(shift + r), f = load_raw<Rows>(first + r), ff = load_raw<Rows>(second + r);
      store_raw(means + r, mean_from_sums(n, s, f));
      store_raw(vars + r, m2_from_sums(n, f, ff) / n);
      store_raw(is_sound + r, sound(n, f, ff, kDotSums<T> ? 0 : eps));
    }
    for (int64_t r = 0; r < count; ++r) {
      if (is_sound[r]) continue;
      const T* const again = x + r * columns;
      const Moments moments = kDotSums<T> ? guessed_moments_of(again, columns, eps) : wide_moments_of(again, columns);
      means[r] = moments.mean;
      vars[r] = moments.variance();
    }
  }

  // Threads take whole rows, which are stored, streamed or staged.
  template <bool kStream>
  void by_rows(int threads, bool staged = false) const {
    const int64_t pieces = pieces_of(columns);
    const bool together = !kTwoPasses<T> && columns >= kFew && pieces == 1;
    const int64_t row_bytes = columns * static_cast<int64_t>(sizeof(T));
    const int64_t group = together ? std::clamp<int64_t>(kFirstLevel / row_bytes, 1, kRowsTogether) : 1;
    const int64_t ahead = should_fetch_rows(group * row_bytes) ? group * columns : 0;
    parallel_for(rows, threads, [&](int64_t begin, int64_t end, int) {
      Stage<T> stage;
      for (int64_t row = begin; row < end; row += group) {
        const int64_t count = std::min(group, end - row);
        double means[kRowsTogether], vars[kRowsTogether], rstds[kRowsTogether];
        if constexpr (!kTwoPasses<T>) {
          if (together) statistics(row, count, means, vars);
        }
        if (!together) {
          Moments moments;
          for (int64_t piece = 0; piece < pieces; ++piece)
            moments += piece_moments<kStream ? kStreamAhead<T> : 0>(row, piece);
          std::fill_n(means, kRowsTogether, moments.mean);
          std::fill_n(vars, kRowsTogether, moments.variance());
        }
        for (int64_t r = 0; r < kRowsTogether; ++r) rstds[r] = reciprocal_std(vars[r], eps);
        for (int64_t r = 0; r < count; ++r) {
          mean[row + r] = static_cast<S>(means[r]);
          rstd[row + r] = static_cast<S>(rstds[r]);
          normalize<kStream>(row + r, staged ? stage.at + r * columns : output + (row + r) * columns, means[r],
                             rstds[r], 0, columns, ahead);
        }
        if (staged) stage.stream_to(output + row * columns, count * columns);
      }
      if (kStream || staged) end_of_stream();
    });
  }

  // Threads share each row by columns.
  void by_columns(int threads) const {
    const int64_t pieces = pieces_of(columns);
    Scratch<Moments> partials(rows * pieces);
    parallel_for(pieces, threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t piece = begin; piece < end; ++piece) partials[row * pieces + piece] = piece_moments(row, piece);
    });
    parallel_for(pieces, threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = 0; row < rows; ++row) {
        Moments moments;
        for (int64_t piece = 0; piece < pieces; ++piece) moments += partials[row * pieces + piece];
        const double r = reciprocal_std(moments.variance(), eps);
        if (begin == 0) {
          mean[row] = static_cast<S>(moments.mean);
          rstd[row] = static_cast<S>(r);
        }
        normalize<false>(row, output + row * columns, moments.mean, r, begin * kPiece, std::min(columns, end * kPiece));
      }
    });
  }

  void run(int threads) const {
    if (share_rows(rows, columns, threads)) return by_columns(threads);
    // Rows of a few lines take longer to compute than to write.
    const int64_t row_bytes = columns * static_cast<int64_t>(sizeof(T));
    if (row_bytes < 512 || !should_stream(2 * rows * row_bytes)) return by_rows<false>(threads);
    should_stage(output, row_bytes) ? by_rows<false>(threads, true) : by_rows<true>(threads);
  }
};

}  // namespace normext::cpu::NORMEXT_ISA
