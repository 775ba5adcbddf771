// layer_norm.cpp -- LayerNorm on the CPU. A row stays in cache between the pass that sums it and the pass that writes.
//
// Rows go to threads. Where there are too few of them, the threads share each row by columns. Either way the sums of a
// row are taken over pieces of kPiece columns and merged in order: a row's result depends on nothing but the row.
#include "ops/layer_norm.h"

#include <algorithm>

#include "dtypes.h"
#include "kernel.h"
#include "parallel.h"
#include "scratch.h"
#include "segments.h"

namespace normext::cpu::NORMEXT_ISA {

constexpr int64_t kPiece = 8192;    // columns
constexpr int64_t kRowsAtOnce = 4;  // rows whose products are summed in float32 before they join grad_weight
constexpr int64_t kCached =
    262144;  // bytes of input that surely stay in a second-level cache, with as much grad_output

inline int64_t pieces_of(int64_t columns) { return (columns + kPiece - 1) / kPiece; }
inline int64_t piece_length(int64_t columns, int64_t piece) { return std::min(kPiece, columns - piece * kPiece); }

// Threads share rows if dealing out whole rows would leave some of them idle for long.
inline bool share_rows(int64_t rows, int64_t columns, int threads) {
  return columns >= 2 * kPiece && rows < 4 * threads && rows % threads != 0;
}

template <class P, class V>
V load_or(const P* p, int64_t at, int64_t count, V otherwise) {
  if (!p) return otherwise;
  return count == kLanes ? load(p + at) : load(p + at, count);
}

// ------------------------------------------------------------------------------------------------ forward
template <class T>
Moments piece_moments(const T* x, int64_t columns, int64_t piece) {
  return moments_of(x + piece * kPiece, {1, 0, piece_length(columns, piece)});
}

// Columns [begin, end) of y = (x - mean) * rstd * weight + bias. The mean is split into high + low: float32 cannot
// hold it all where it is far from zero, and the difference must be exact.
template <class T, class P>
void normalize(const T* x, const P* weight, const P* bias, T* y, int64_t begin, int64_t end, double mean, double rstd) {
  const auto high = static_cast<Scalar<T>>(mean);
  const Vector<T> center = broadcast(high), scale = broadcast(static_cast<Scalar<T>>(rstd));
  const Vector<T> shift = broadcast(static_cast<Scalar<T>>((high - mean) * rstd));
  const Vector<T> one = broadcast(Scalar<T>{1}), zero = broadcast(Scalar<T>{0});
  const auto apply = [&](Vector<T> v, int64_t at, int64_t count) {
    return fma(fma(v - center, scale, shift), load_or(weight, at, count, one), load_or(bias, at, count, zero));
  };
  int64_t at = begin;
  for (; at + kLanes <= end; at += kLanes) store(y + at, apply(load(x + at), at, kLanes));
  if (at < end) store(y + at, apply(load(x + at, end - at), at, end - at), end - at);
}

template <class T, class P>
void forward(const LayerNormForward& op, int threads) {
  using S = Scalar<T>;
  const T* input = static_cast<const T*>(op.input);
  T* output = static_cast<T*>(op.output);
  const P *weight = static_cast<const P*>(op.weight), *bias = static_cast<const P*>(op.bias);
  S *mean = static_cast<S*>(op.mean), *rstd = static_cast<S*>(op.rstd);
  const int64_t columns = op.columns, pieces = pieces_of(columns);
  threads = threads_for(op.rows * columns, threads);

  // Writes a row's statistics, and columns [begin, end) of its output.
  const auto finish = [&](int64_t row, const Moments& moments, int64_t begin, int64_t end) {
    const double r = reciprocal_std(moments.variance(), op.eps);
    if (begin == 0) {
      mean[row] = static_cast<S>(moments.mean);
      rstd[row] = static_cast<S>(r);
    }
    normalize(input + row * columns, weight, bias, output + row * columns, begin, end, moments.mean, r);
  };

  if (!share_rows(op.rows, columns, threads)) {
    parallel_for(op.rows, threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        Moments moments;
        for (int64_t piece = 0; piece < pieces; ++piece)
          moments += piece_moments(input + row * columns, columns, piece);
        finish(row, moments, 0, columns);
      }
    });
    return;
  }
  Scratch<Moments> partials(op.rows * pieces);
  parallel_for(op.rows * pieces, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      partials[i] = piece_moments(input + i / pieces * columns, columns, i % pieces);
  });
  parallel_for(columns, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = 0; row < op.rows; ++row) {
      Moments moments;
      for (int64_t piece = 0; piece < pieces; ++piece) moments += partials[row * pieces + piece];
      finish(row, moments, begin, end);
    }
  });
}

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
    int64_t at = piece * kPiece;
    const int64_t end = at + piece_length(columns, piece);
    while (at < end) {
      GradientSums<T> part;
      const int64_t stop = std::min(end, at + kShort * kLanes);
      for (; at + kLanes <= stop; at += kLanes) {
        const V in[2] = {load(dy + at) * load_or(weight, at, kLanes, one), load(x + at)};
        part.add(in, k);
      }
      if (at < stop) {
        const int64_t count = stop - at;
        const V in[2] = {load(dy + at, count) * load_or(weight, at, count, one), load(x + at, count)};
        part.add(in, k, count);
        at = stop;
      }
      part.flush(sums);
    }
    return {sum(sums[0]), sum(sums[1]), sum(sums[2])};
  }

  // What a row's elementwise pass needs: xhat = (x - mean) * rstd + offset, dx = (g - level + xhat * slope) * rstd.
  struct Row {
    V mean, rstd, offset, slope, level;
  };
  Row row_coefficients(int64_t row, const Gradients& sums) const {
    const double n = static_cast<double>(columns);
    return {broadcast(mean[row]), broadcast(rstd[row]), broadcast(static_cast<S>(-sums.offset(n))),
            broadcast(static_cast<S>(-sums.corrected(n) / n)), broadcast(static_cast<S>(sums.g / n))};
  }

  // Columns [begin, end) of kRows rows from `first`: writes grad_input and adds to the weight's and bias's totals,
  // which are indexed from column `origin`.
  template <int kRows>
  void gradients(int64_t first, const Row* row, int64_t begin, int64_t end, double* weight_totals, double* bias_totals,
                 int64_t origin) const {
    const V one = broadcast(S{1});
    const auto step = [&](int64_t at, int64_t count) {
      const bool whole = count == kLanes;
      const V w = load_or(weight, at, count, one);
      V dy_xhat{}, dy_sum{};
      for (int r = 0; r < kRows; ++r) {
        const int64_t i = (first + r) * columns + at;
        const V dy = whole ? load(grad_output + i) : load(grad_output + i, count);
        const V x = whole ? load(input + i) : load(input + i, count);
        const V xhat = fma(x - row[r].mean, row[r].rstd, row[r].offset);
        dy_xhat = fma(dy, xhat, dy_xhat);
        dy_sum = dy_sum + dy;
        if (!grad_input) continue;
        const V dx = fma(xhat, row[r].slope, dy * w - row[r].level) * row[r].rstd;
        if (whole)
          store(grad_input + i, dx);
        else
          store(grad_input + i, dx, count);
      }
      // Totals have room for whole vectors; lanes beyond `count` are never read.
      const int64_t t = at - origin;
      if (weight_totals) store(weight_totals + t, load(weight_totals + t) + widen(dy_xhat));
      if (bias_totals) store(bias_totals + t, load(bias_totals + t) + widen(dy_sum));
    };
    int64_t at = begin;
    for (; at + kLanes <= end; at += kLanes) step(at, kLanes);
    if (at < end) step(at, end - at);
  }

  void store_totals(P* gradient, const double* totals, int64_t begin, int64_t end, int64_t origin) const {
    if (!gradient) return;
    for (int64_t at = begin; at < end; ++at) store_one(gradient + at, totals[at - origin]);
  }

  // Threads take whole rows, and each has totals of its own for the weight and the bias.
  void by_rows(int threads) const {
    const int64_t pieces = pieces_of(columns), stride = (columns + kLanes - 1) / kLanes * kLanes;
    const int64_t block = columns * static_cast<int64_t>(sizeof(T)) * kRowsAtOnce <= kCached ? kRowsAtOnce : 1;
    const int parts = static_cast<int>(std::min<int64_t>(threads, rows));
    Scratch<double> totals(parts * stride * 2);
    const auto totals_of = [&](P* gradient, int part, int which) -> double* {
      return gradient ? totals + (2 * part + which) * stride : nullptr;
    };
    parallel_for(rows, parts, [&](int64_t begin, int64_t end, int part) {
      double *weight_totals = totals_of(grad_weight, part, 0), *bias_totals = totals_of(grad_bias, part, 1);
      if (weight_totals) std::fill_n(weight_totals, stride, 0.0);
      if (bias_totals) std::fill_n(bias_totals, stride, 0.0);
      const auto take = [&]<int kRows>(int64_t first) {
        Row row[kRows];
        for (int r = 0; r < kRows; ++r) {
          Gradients sums;
          for (int64_t piece = 0; piece < pieces; ++piece) sums += piece_sums(first + r, piece);
          row[r] = row_coefficients(first + r, sums);
        }
        gradients<kRows>(first, row, 0, columns, weight_totals, bias_totals, 0);
      };
      int64_t row = begin;
      for (; row + block <= end && block > 1; row += block) take.template operator()<kRowsAtOnce>(row);
      for (; row < end; ++row) take.template operator()<1>(row);
    });
    if (!grad_weight && !grad_bias) return;
    parallel_for(columns, threads_for(columns * parts, threads), [&](int64_t begin, int64_t end, int) {
      for (int part = 1; part < parts; ++part)
        for (int which = 0; which < 2; ++which)
          if (which == 0 ? grad_weight : grad_bias)
            for (int64_t at = begin; at < end; ++at)
              totals[which * stride + at] += totals[(2 * part + which) * stride + at];
      store_totals(grad_weight, totals, begin, end, 0);
      store_totals(grad_bias, totals + stride, begin, end, 0);
    });
  }

  // Threads share every row by columns: each owns the weight's and bias's gradients of its columns.
  void by_columns(int threads) const {
    const int64_t pieces = pieces_of(columns);
    Scratch<Gradients> partials(rows * pieces);
    parallel_for(rows * pieces, threads, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) partials[i] = piece_sums(i / pieces, i % pieces);
    });
    parallel_for(pieces, threads, [&](int64_t begin, int64_t end, int) {
      Scratch<double> totals(2 * kPiece);
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t origin = piece * kPiece, stop = origin + piece_length(columns, piece);
        std::fill_n(static_cast<double*>(totals), 2 * kPiece, 0.0);
        for (int64_t row = 0; row < rows; ++row) {
          Gradients sums;
          for (int64_t i = 0; i < pieces; ++i) sums += partials[row * pieces + i];
          const Row coefficients = row_coefficients(row, sums);
          gradients<1>(row, &coefficients, origin, stop, totals, totals + kPiece, origin);
        }
        store_totals(grad_weight, totals, origin, stop, origin);
        store_totals(grad_bias, totals + kPiece, origin, stop, origin);
      }
    });
  }
};

template <>
void run(const LayerNormForward& op, int threads) {
  with_types(op.dtype, op.param_dtype, [&]<class T, class P>(Type<T>, Type<P>) { forward<T, P>(op, threads); });
}

template <>
void run(const LayerNormBackward& op, int threads) {
  threads = threads_for(op.rows * op.columns, threads);
  with_types(op.dtype, op.param_dtype, [&]<class T, class P>(Type<T>, Type<P>) {
    const Backward<T, P> backward(op);
    if (share_rows(op.rows, op.columns, threads))
      backward.by_columns(threads);
    else
      backward.by_rows(threads);
  });
}

}  // namespace normext::cpu::NORMEXT_ISA

template void normext::cpu::run_on<normext::cpu::kIsa>(const LayerNormForward&, int);
template void normext::cpu::run_on<normext::cpu::kIsa>(const LayerNormBackward&, int);
