// layer_norm.cpp -- LayerNorm on the CPU. A row stays in cache between the pass that sums it and the pass that writes.
//
// Rows go to threads. Where there are too few of them, the threads share each row by columns. Either way the sums of a
// row are taken over pieces of kPiece columns and merged in order: a row's result depends on nothing but the row.
#include "ops/layer_norm.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "cache.h"
#include "dtypes.h"
#include "kernel.h"
#include "parallel.h"
#include "passes.h"
#include "scratch.h"

namespace normext::cpu::NORMEXT_ISA {

constexpr int64_t kPiece = 4096;        // columns
constexpr int64_t kRowsAtOnce = 8;      // rows that go through each step together, if they are short
constexpr int64_t kFirstLevel = 32768;  // bytes that surely stay in a first-level cache

inline int64_t pieces_of(int64_t columns) { return (columns + kPiece - 1) / kPiece; }
inline int64_t piece_length(int64_t columns, int64_t piece) { return std::min(kPiece, columns - piece * kPiece); }

template <class P, class V>
V load_or(const P* p, int64_t at, int64_t count, V otherwise) {
  return p ? load(p + at, count) : otherwise;
}

// ------------------------------------------------------------------------------------------------ forward
// Sums of d and d^2, d = x - shift.
template <class Sum, class T>
std::pair<double, double> sums_about(Scalar<T> shift, const T* x, int64_t count) {
  const T* const in[1] = {x};
  const Vector<T> k[1] = {broadcast(shift)};
  Doubles sums[2] = {};
  add_sums<Sum>(0, count, Inputs<T, 1>{in}, k, sums);
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

template <class T>
Moments moments_of(const T* x, int64_t count, double eps) {
  if (!kTwoPasses<T> && count >= kFew) {
    const auto shift = guess(x);
    const auto [first, second] = sums_about<MomentSums<T>>(shift, x, count);
    if (sound(count, first, second, eps)) return moments_from_sums(count, shift, first, second);
  }
  return wide_moments_of(x, count);
}

template <class T, class P>
struct Forward {
  using S = Scalar<T>;
  using V = Vector<T>;

  const T* input;
  const P *weight, *bias;
  T* output;
  S *mean, *rstd;
  int64_t rows, columns;
  double eps;

  explicit Forward(const LayerNormForward& op)
      : input(static_cast<const T*>(op.input)),
        weight(static_cast<const P*>(op.weight)),
        bias(static_cast<const P*>(op.bias)),
        output(static_cast<T*>(op.output)),
        mean(static_cast<S*>(op.mean)),
        rstd(static_cast<S*>(op.rstd)),
        rows(op.rows),
        columns(op.columns),
        eps(op.eps) {}

  Moments piece_moments(int64_t row, int64_t piece) const {
    return moments_of(input + row * columns + piece * kPiece, piece_length(columns, piece), eps);
  }

  // Columns [begin, end) of a row's output, (x - mean) * rstd * weight + bias. The mean is split into high + low:
  // float32 cannot hold it all where it is far from zero, and the difference must be exact.
  template <bool kStream>
  void normalize(int64_t row, double mean, double rstd, int64_t begin, int64_t end) const {
    const auto high = static_cast<S>(mean);
    const V center = broadcast(high), scale = broadcast(static_cast<S>(rstd));
    const V shift = broadcast(static_cast<S>((high - mean) * rstd));
    const V one = broadcast(S{1}), zero = broadcast(S{0});
    const T* x = input + row * columns;
    map_vectors<kStream>(output + row * columns, begin, end,
                         [&, w = weight, b = bias](int64_t at, int64_t count) NORMEXT_INLINE {
                           const V xhat = fma(load(x + at, count) - center, scale, shift);
                           return fma(xhat, load_or(w, at, count, one), load_or(b, at, count, zero));
                         });
  }

  // Means and variances of `count` rows of one piece. The steps that wait for each other are taken for all rows at
  // once.
  void statistics(int64_t first_row, int64_t count, double (&means)[kRowsAtOnce], double (&vars)[kRowsAtOnce]) const {
    const double n = static_cast<double>(columns);
    double shift[kRowsAtOnce] = {}, first[kRowsAtOnce] = {}, second[kRowsAtOnce] = {};
    bool is_sound[kRowsAtOnce];
    const T* x = input + first_row * columns;
    for (int64_t r = 0; r < count; ++r) {
      const S near = guess(x + r * columns);
      shift[r] = near;
      std::tie(first[r], second[r]) = sums_about<MomentSums<T>>(near, x + r * columns, columns);
    }
    for (int64_t r = 0; r < kRowsAtOnce; ++r) {
      const Moments moments = moments_from_sums(n, shift[r], first[r], second[r]);
      means[r] = moments.mean;
      vars[r] = moments.variance();
      is_sound[r] = sound(n, first[r], second[r], eps);
    }
    for (int64_t r = 0; r < count; ++r) {
      if (is_sound[r]) continue;
      const Moments moments = wide_moments_of(x + r * columns, columns);
      means[r] = moments.mean;
      vars[r] = moments.variance();
    }
  }

  template <bool kStream>
  void by_rows(int threads) const {
    const int64_t pieces = pieces_of(columns);
    const bool together = !kTwoPasses<T> && columns >= kFew && pieces == 1;
    const int64_t row_bytes = columns * static_cast<int64_t>(sizeof(T));
    const int64_t group = together ? std::clamp<int64_t>(kFirstLevel / row_bytes, 1, kRowsAtOnce) : 1;
    parallel_for(rows, threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; row += group) {
        const int64_t count = std::min(group, end - row);
        double means[kRowsAtOnce], vars[kRowsAtOnce], rstds[kRowsAtOnce];
        if (together) {
          statistics(row, count, means, vars);
        } else {
          Moments moments;
          for (int64_t piece = 0; piece < pieces; ++piece) moments += piece_moments(row, piece);
          std::fill_n(means, kRowsAtOnce, moments.mean);
          std::fill_n(vars, kRowsAtOnce, moments.variance());
        }
        for (int64_t r = 0; r < kRowsAtOnce; ++r) rstds[r] = reciprocal_std(vars[r], eps);
        for (int64_t r = 0; r < count; ++r) {
          mean[row + r] = static_cast<S>(means[r]);
          rstd[row + r] = static_cast<S>(rstds[r]);
          normalize<kStream>(row + r, means[r], rstds[r], 0, columns);
        }
      }
      if constexpr (kStream) end_of_stream();
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
        normalize<false>(row, moments.mean, r, begin * kPiece, std::min(columns, end * kPiece));
      }
    });
  }

  void run(int threads) const {
    // Threads share rows if dealing out whole rows would leave some of them idle for long.
    if (columns >= 4 * kPiece && rows < 4 * threads && rows % threads != 0) return by_columns(threads);
    should_stream(2 * rows * columns * static_cast<int64_t>(sizeof(T))) ? by_rows<true>(threads)
                                                                        : by_rows<false>(threads);
  }
};

// ------------------------------------------------------------------------------------------------ backward
template <class T, class P>
struct Backward {
  using S = Scalar<T>;
  using V = Vector<T>;

  const T *grad_output, *input;
  const S *mean, *rstd;
  const P* weight;
  T* grad_input;
  P *grad_weight, *grad_bias;
  int64_t rows, columns;

  explicit Backward(const LayerNormBackward& op)
      : grad_output(static_cast<const T*>(op.grad_output)),
        input(static_cast<const T*>(op.input)),
        mean(static_cast<const S*>(op.mean)),
        rstd(static_cast<const S*>(op.rstd)),
        weight(static_cast<const P*>(op.weight)),
        grad_input(static_cast<T*>(op.grad_input)),
        grad_weight(static_cast<P*>(op.grad_weight)),
        grad_bias(static_cast<P*>(op.grad_bias)),
        rows(op.rows),
        columns(op.columns) {}

  // The sums of one piece of a row, with g = grad_output * weight.
  Gradients piece_sums(int64_t row, int64_t piece) const {
    const T *dy = grad_output + row * columns, *x = input + row * columns;
    const V k[2] = {broadcast(mean[row]), broadcast(rstd[row])}, one = broadcast(S{1});
    Doubles sums[3] = {};
    const auto inputs = [&, w = weight](int64_t at, int64_t count, V(&in)[2]) {
      in[0] = load(dy + at, count) * load_or(w, at, count, one);
      in[1] = load(x + at, count);
    };
    const int64_t begin = piece * kPiece;
    add_sums<GradientSums<T>>(begin, begin + piece_length(columns, piece), inputs, k, sums);
    return {sum(sums[0]), sum(sums[1]), sum(sums[2])};
  }

  // What a row's elementwise pass needs.
  struct Row {
    S mean, rstd, offset, slope, level;
  };
  struct Coefficients {
    V mean, rstd, offset, slope, level;

    explicit Coefficients(const Row& row)
        : mean(broadcast(row.mean)),
          rstd(broadcast(row.rstd)),
          offset(broadcast(row.offset)),
          slope(broadcast(row.slope)),
          level(broadcast(row.level)) {}
    V xhat(V x) const { return fma(x - mean, rstd, offset); }
    V gradient(V dy, V weight, V xhat) const { return fma(xhat, slope, fma(dy, weight, level)) * rstd; }
  };
  Row row_coefficients(int64_t row, const Gradients& sums) const {
    const double n = static_cast<double>(columns);
    return {mean[row], rstd[row], static_cast<S>(-sums.offset(n)), static_cast<S>(-sums.corrected(n) / n),
            static_cast<S>(-sums.g / n)};
  }

  // Columns [begin, end) of `count` rows from `first`: writes grad_input and adds to the weight's and bias's totals.
  // Both at once, but for rows to be streamed that share cache lines: each then is streamed on its own.
  template <bool kStream>
  void gradients(int64_t first, int64_t count, const Row* row, int64_t begin, int64_t end, double* weight_totals,
                 double* bias_totals) const {
    const bool whole_lines =
        columns % kLanes == 0 && (reinterpret_cast<uintptr_t>(grad_input) | (columns * sizeof(T))) % 64 == 0;
    if (!kStream || !grad_input || whole_lines)
      return elementwise<kStream>(first, count, row, begin, end, grad_input, weight_totals, bias_totals);
    for (int64_t r = 0; r < count; ++r) {
      const T *dy = grad_output + (first + r) * columns, *x = input + (first + r) * columns;
      const V one = broadcast(S{1});
      const Coefficients k(row[r]);
      map_vectors<kStream>(grad_input + (first + r) * columns, begin, end,
                           [&, w = weight](int64_t at, int64_t n) NORMEXT_INLINE {
                             return k.gradient(load(dy + at, n), load_or(w, at, n, one), k.xhat(load(x + at, n)));
                           });
    }
    if (weight_totals || bias_totals)
      elementwise<false>(first, count, row, begin, end, nullptr, weight_totals, bias_totals);
  }

  template <bool kStream>
  void elementwise(int64_t first, int64_t rows, const Row* row, int64_t begin, int64_t end, T* dx,
                   double* weight_totals, double* bias_totals) const {
    const V one = broadcast(S{1});
    for_vectors_once(begin, end, [&](int64_t at, int64_t count) NORMEXT_INLINE {
      const V w = load_or(weight, at, count, one);
      V dy_xhat{}, dy_sum{};
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = (first + r) * columns + at;
        const Coefficients k(row[r]);
        const V dy = load(grad_output + i, count), xhat = k.xhat(load(input + i, count));
        dy_xhat = fma(dy, xhat, dy_xhat);
        dy_sum = dy_sum + dy;
        if (!dx) continue;
        if (kStream)
          stream(dx + i, k.gradient(dy, w, xhat));
        else
          store(dx + i, k.gradient(dy, w, xhat), count);
      }
      // Totals have room for whole vectors; lanes beyond `count` are never read.
      if (weight_totals) store(weight_totals + at, load(weight_totals + at) + widen(dy_xhat));
      if (bias_totals) store(bias_totals + at, load(bias_totals + at) + widen(dy_sum));
    });
  }

  void store_totals(P* gradient, const double* totals, int64_t begin, int64_t end) const {
    if (gradient)
      for (int64_t at = begin; at < end; ++at) store_one(gradient + at, totals[at]);
  }

  // Rows at a time, of which both gradients' and inputs' stay within `bytes` from the sums to the elementwise pass.
  // Long rows at power-of-two distances, if many at once, would fall into the same few lines of the first-level cache.
  int64_t group_within(int64_t bytes) const {
    const int64_t row_bytes = 2 * columns * static_cast<int64_t>(sizeof(T));
    const int64_t most = kRowsAtOnce * row_bytes <= kFirstLevel ? kRowsAtOnce : kRowsAtOnce / 2;
    return std::clamp<int64_t>(bytes / row_bytes, 1, most);
  }

  // Threads take whole rows, and each has totals of its own for the weight and the bias.
  template <bool kStream>
  void by_rows(int threads) const {
    const int64_t pieces = pieces_of(columns), stride = (columns + kLanes - 1) / kLanes * kLanes;
    const int64_t group = group_within(2 * kCached);
    const int parts = static_cast<int>(std::min<int64_t>(threads, rows));
    Scratch<double> totals(parts * stride * 2);
    parallel_for(rows, parts, [&](int64_t begin, int64_t end, int part) {
      double* weight_totals = grad_weight ? totals + 2 * part * stride : nullptr;
      double* bias_totals = grad_bias ? totals + (2 * part + 1) * stride : nullptr;
      if (weight_totals) std::fill_n(weight_totals, stride, 0.0);
      if (bias_totals) std::fill_n(bias_totals, stride, 0.0);
      for (int64_t first = begin; first < end; first += group) {
        const int64_t count = std::min(group, end - first);
        Row row[kRowsAtOnce];
        for (int64_t r = 0; r < count; ++r) {
          Gradients sums = piece_sums(first + r, 0);
          for (int64_t piece = 1; piece < pieces; ++piece) sums += piece_sums(first + r, piece);
          row[r] = row_coefficients(first + r, sums);
        }
        gradients<kStream>(first, count, row, 0, columns, weight_totals, bias_totals);
      }
      if constexpr (kStream) end_of_stream();
    });
    if (!grad_weight && !grad_bias) return;
    parallel_for(columns, threads_for(columns * parts, threads), [&](int64_t begin, int64_t end, int) {
      for (int part = 1; part < parts; ++part)
        for (int which = 0; which < 2; ++which)
          if (which == 0 ? grad_weight : grad_bias)
            for (int64_t at = begin; at < end; ++at)
              totals[which * stride + at] += totals[(2 * part + which) * stride + at];
      store_totals(grad_weight, totals, begin, end);
      store_totals(grad_bias, totals + stride, begin, end);
    });
  }

  // Threads share each row by columns, and each owns the totals of its columns.
  template <bool kStream>
  void by_columns(int threads) const {
    const int64_t pieces = pieces_of(columns), group = group_within(last_level_cache() / 2);
    Scratch<Gradients> partials(group * pieces);
    const int64_t stride = (columns + kLanes - 1) / kLanes * kLanes;
    Scratch<double> totals(2 * stride);
    double *weight_totals = grad_weight ? totals + 0 : nullptr, *bias_totals = grad_bias ? totals + stride : nullptr;
    for (int64_t first = 0; first < rows; first += group) {
      const int64_t count = std::min(group, rows - first);
      parallel_for(pieces, threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t r = 0; r < count; ++r)
          for (int64_t piece = begin; piece < end; ++piece) partials[r * pieces + piece] = piece_sums(first + r, piece);
      });
      parallel_for(pieces, threads, [&](int64_t begin_piece, int64_t end_piece, int) {
        const int64_t begin = begin_piece * kPiece, end = std::min(columns, end_piece * kPiece);
        if (first == 0 && weight_totals) std::fill(weight_totals + begin, weight_totals + end, 0.0);
        if (first == 0 && bias_totals) std::fill(bias_totals + begin, bias_totals + end, 0.0);
        Row row[kRowsAtOnce];
        for (int64_t r = 0; r < count; ++r) {
          Gradients sums;
          for (int64_t i = 0; i < pieces; ++i) sums += partials[r * pieces + i];
          row[r] = row_coefficients(first + r, sums);
        }
        gradients<kStream>(first, count, row, begin, end, weight_totals, bias_totals);
        if constexpr (kStream) end_of_stream();
        if (first + count < rows) return;
        store_totals(grad_weight, weight_totals, begin, end);
        store_totals(grad_bias, bias_totals, begin, end);
      });
    }
  }

  template <bool kStream>
  void run(int threads) const {
    const bool few_rows = columns >= 4 * kPiece && rows < 4 * threads && rows % threads != 0;
    const bool large_totals = columns * 2 * static_cast<int64_t>(sizeof(double)) > kCached;
    few_rows || large_totals ? by_columns<kStream>(threads) : by_rows<kStream>(threads);
  }
};

template <>
void run(const LayerNormForward& op, int threads) {
  threads = threads_for(op.rows * op.columns, threads);
  with_types(op.dtype, op.param_dtype, [&]<class T, class P>(Type<T>, Type<P>) { Forward<T, P>(op).run(threads); });
}

template <>
void run(const LayerNormBackward& op, int threads) {
  threads = threads_for(op.rows * op.columns, threads);
  with_types(op.dtype, op.param_dtype, [&]<class T, class P>(Type<T>, Type<P>) {
    const bool streams = should_stream(3 * op.rows * op.columns * static_cast<int64_t>(sizeof(T)));
    const Backward<T, P> backward(op);
    streams ? backward.template run<true>(threads) : backward.template run<false>(threads);
  });
}

}  // namespace normext::cpu::NORMEXT_ISA

template void normext::cpu::run_on<normext::cpu::kIsa>(const LayerNormForward&, int);
template void normext::cpu::run_on<normext::cpu::kIsa>(const LayerNormBackward&, int);
