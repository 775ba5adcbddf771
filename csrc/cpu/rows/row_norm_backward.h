// row_norm_backward.h -- row norms backward on the CPU: the sums of a row, then everything elementwise in one pass,
// the products for the weight's and bias's gradients included.
#pragma once
#include "cpu/rows/rows.h"
#include "cpu/rows/statistics.h"

namespace normext::cpu::NORMEXT_ISA {

template <class T, class P, class Statistics>
struct RowGradients {
  using S = Scalar<T>;
  using V = Vector<T>;

  const T *grad_output, *input;
  const S *mean, *rstd;
  const P* weight;
  const T* input_weight;  // the weight in the input's dtype, if it is to be had
  T* grad_input;
  P *grad_weight, *grad_bias;
  int64_t rows, columns;

  RowGradients(const RowNormBackward& op, const T* input_weight)
      : grad_output(static_cast<const T*>(op.grad_output)),
        input(static_cast<const T*>(op.input)),
        mean(static_cast<const S*>(op.mean)),
        rstd(static_cast<const S*>(op.rstd)),
        weight(static_cast<const P*>(op.weight)),
        input_weight(input_weight),
        grad_input(static_cast<T*>(op.grad_input)),
        grad_weight(static_cast<P*>(op.grad_weight)),
        grad_bias(static_cast<P*>(op.grad_bias)),
        rows(op.rows),
        columns(op.columns) {}

  S mean_of(int64_t row) const { return Statistics::kCentered ? mean[row] : S{0}; }

  // Whether the mean is so near zero that half types do without x - mean, and without the sum of xhat.
  bool near(int64_t row) const { return sizeof(T) == 2 && near_zero(mean_of(row), rstd[row]) && rstd[row] < 0x1p80f; }

  // Adds Sum (sums.h) over one piece of a row to its totals.
  template <class Sum, class Inputs>
  NORMEXT_INLINE void add_piece(int64_t piece, const Inputs& inputs, const S (&coefficients)[Sum::kCoefficients],
                                Doubles (&totals)[Sum::kSums]) const {
    const int64_t begin = piece * kPiece, end = begin + piece_length(columns, piece);
    RunSums<Sum, T, Inputs>(inputs, begin, end, coefficients, totals).finish();
  }

  // Sums of g = grad_output * weight and of g * x, if they can be taken as dot products.
  NORMEXT_INLINE bool add_dot_products(int64_t row, int64_t piece, Doubles (&totals)[2]) const {
    if constexpr (kDotSums<T>) {
      const T *dy = grad_output + row * columns, *x = input + row * columns;
      if (!weight)
        add_piece<typename Statistics::template DotProducts<false>>(piece, Inputs<T, 2>({dy, x}), {}, totals);
      else if (input_weight)
        add_piece<typename Statistics::template DotProducts<true>>(piece, Inputs<T, 3>({dy, x, input_weight}), {},
                                                                   totals);
      return !weight || input_weight;
    }
    return false;
  }

  // The sums of one piece of a row.
  Gradients piece_sums(int64_t row, int64_t piece) const {
    const T *dy = grad_output + row * columns, *x = input + row * columns;
    const auto weighted = [dy, x, w = weight](int64_t at, int64_t count, V(&in)[2]) NORMEXT_INLINE {
      in[0] = load(dy + at, count) * load_or(w, at, count, broadcast(S{1}));
      in[1] = load(x + at, count);
    };
    if constexpr (sizeof(T) == 2) {
      if (near(row)) {
        Doubles products[2] = {};
        if (!add_dot_products(row, piece, products))
          add_piece<typename Statistics::Products>(piece, weighted, {}, products);
        const double count = static_cast<double>(piece_length(columns, piece)), g = sum(products[0]);
        double g_xhat = sum(products[1]);
        if (Statistics::settle(count, mean_of(row), rstd[row], g, g_xhat)) return {g, g_xhat, 0};
      }
    }
    Doubles sums[3] = {};
    add_piece<typename Statistics::Gradients>(piece, weighted, {mean_of(row), rstd[row]}, sums);
    return {sum(sums[0]), sum(sums[1]), sum(sums[2])};
  }

  // What a row's elementwise pass needs: xhat = (x - center) * rstd + offset, where the center is the mean or, near
  // zero, zero.
  struct Row {
    S center, rstd, offset, slope, level;
  };
  template <bool kAtZero>  // all centers are zero
  struct Coefficients {
    V center, rstd, offset, slope, level;

    explicit Coefficients(const Row& row)
        : center(broadcast(row.center)),
          rstd(broadcast(row.rstd)),
          offset(broadcast(row.offset)),
          slope(broadcast(row.slope)),
          level(broadcast(row.level)) {}
    V xhat(V x) const { return fma(kAtZero ? x : x - center, rstd, offset); }
    V gradient(V dy, V weight, V xhat) const { return fma(xhat, slope, fma(dy, weight, level)) * rstd; }
  };
  Row row_coefficients(int64_t row, const Gradients& sums) const {
    const double n = static_cast<double>(columns), offset = -sums.offset(n);
    const double near_offset = offset - static_cast<double>(mean_of(row)) * rstd[row];
    return {near(row) ? S{0} : mean_of(row), rstd[row], static_cast<S>(near(row) ? near_offset : offset),
            static_cast<S>(-sums.corrected(n) / n), static_cast<S>(-sums.g / n)};
  }

  // Columns [begin, end) of `count` rows from `first`: writes grad_input and adds to the weight's and bias's totals, or
  // writes their gradients, if there are no totals because these are all the rows, in one pass over both. Rows to be
  // streamed that share cache lines are staged if they are short; else each is streamed on its own. If `ahead` is not
  // 0, it asks for what lies so many elements ahead.
  template <bool kStream, bool kAtZero>
  void gradients(int64_t first, int64_t count, const Row* row, int64_t begin, int64_t end, double* weight_totals,
                 double* bias_totals, int64_t ahead) const {
    const int64_t row_bytes = columns * static_cast<int64_t>(sizeof(T));
    T* const dx = grad_input ? grad_input + first * columns : nullptr;
    const bool whole = columns % kLanes == 0 && whole_lines(grad_input, row_bytes);
    if (!kStream || !dx || whole)
      return elementwise<kStream, kAtZero>(first, count, row, begin, end, dx, weight_totals, bias_totals, ahead);
    if (should_stage(grad_input, row_bytes)) {
      Stage<T> stage;
      elementwise<false, kAtZero>(first, count, row, begin, end, stage.at, weight_totals, bias_totals, ahead);
      return stage.stream_to(dx, count * columns);
    }
    for (int64_t r = 0; r < count; ++r) {
      const T *dy = grad_output + (first + r) * columns, *x = input + (first + r) * columns;
      const V one = broadcast(S{1});
      const Coefficients<kAtZero> k(row[r]);
      map_vectors<kStream>(dx + r * columns, begin, end, [&, w = weight](int64_t at, int64_t n) NORMEXT_INLINE {
        return k.gradient(load(dy + at, n), load_or(w, at, n, one), k.xhat(load(x + at, n)));
      });
    }
    if (grad_weight || grad_bias)
      elementwise<false, kAtZero>(first, count, row, begin, end, nullptr, weight_totals, bias_totals, ahead);
  }

  template <bool kStream>
  void gradients(int64_t first, int64_t count, const Row* row, int64_t begin, int64_t end, double* weight_totals,
                 double* bias_totals, int64_t ahead = 0) const {
    bool at_zero = sizeof(T) == 2 || !Statistics::kCentered;
    for (int64_t r = 0; r < count; ++r) at_zero = at_zero && row[r].center == 0;
    if (!Statistics::kCentered || at_zero)
      gradients<kStream, true>(first, count, row, begin, end, weight_totals, bias_totals, ahead);
    else if constexpr (Statistics::kCentered)
      gradients<kStream, false>(first, count, row, begin, end, weight_totals, bias_totals, ahead);
  }

  // The first row's grad_input begins at dx, if it is wanted.
  template <bool kStream, bool kAtZero>
  void elementwise(int64_t first, int64_t rows, const Row* row, int64_t begin, int64_t end, T* dx,
                   double* weight_totals, double* bias_totals, int64_t ahead) const {
    const V one = broadcast(S{1});
    const auto keep_sums = [](double* totals, P* gradient, int64_t at, V sums, int64_t count) NORMEXT_INLINE {
      if (totals)  // there is room for whole vectors; the rest is never read
        store(totals + at, load(totals + at) + widen(sums));
      else if (gradient)
        store(gradient + at, sums, count);
    };
    const auto vectors = [&]<int kVectors>(int64_t at, int64_t count) NORMEXT_INLINE {
      V w[kVectors], dy_xhat[kVectors] = {}, dy_sum[kVectors] = {}, gradient[kVectors];
      for (int v = 0; v < kVectors; ++v) w[v] = load_or(weight, at + v * kLanes, count, one);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = (first + r) * columns + at;
        const Coefficients<kAtZero> k(row[r]);
        if (ahead) {
          __builtin_prefetch(grad_output + i + ahead, 0, 2);
          __builtin_prefetch(input + i + ahead, 0, 2);
        }
        for (int v = 0; v < kVectors; ++v) {
          const V dy = load(grad_output + i + v * kLanes, count), xhat = k.xhat(load(input + i + v * kLanes, count));
          dy_xhat[v] = fma(dy, xhat, dy_xhat[v]);
          if constexpr (Statistics::kCentered) dy_sum[v] = dy_sum[v] + dy;
          gradient[v] = k.gradient(dy, w[v], xhat);
        }
        if (!dx) continue;
        T* const to = dx + r * columns + at;
        if constexpr (kVectors == 1) {
          kStream ? stream(to, gradient[0]) : store(to, gradient[0], count);
        } else {
          Line<T> line;
          for (int v = 0; v < kVectors; v += 2)
            store(kStream ? line.at + v * kLanes : to + v * kLanes, gradient[v], gradient[v + 1]);
          if constexpr (kStream) line.stream_to(to);
        }
      }
      for (int v = 0; v < kVectors; ++v) {
        keep_sums(weight_totals, grad_weight, at + v * kLanes, dy_xhat[v], count);
        if constexpr (Statistics::kCentered) keep_sums(bias_totals, grad_bias, at + v * kLanes, dy_sum[v], count);
      }
    };
    int64_t at = begin;
    // Two of half types are rounded at once, and what is streamed are whole lines.
    constexpr int kVectors = kStream ? kLineVectors<T> : sizeof(T) == 2 ? 2 : 1;
    if constexpr (kVectors > 1)
      for (; at + kVectors * kLanes <= end; at += kVectors * kLanes) vectors.template operator()<kVectors>(at, kLanes);
    for_vectors_once(at, end, [&](int64_t i, int64_t n) NORMEXT_INLINE { vectors.template operator()<1>(i, n); });
  }

  void store_totals(P* gradient, const double* totals, int64_t begin, int64_t end) const {
    if (!gradient) return;
    for_vectors(begin, end, [&](int64_t at, int64_t count) NORMEXT_INLINE {
      Vector<P> rounded;
      narrow(load(totals + at, count), rounded);
      store(gradient + at, rounded, count);
    });
  }

  // Rows at a time, of which both gradients' and inputs' stay within `bytes` from the sums to the elementwise pass.
  // Long rows at power-of-two distances, if many at once, would fall into the same few lines of the first-level cache.
  int64_t group_within(int64_t bytes) const {
    const int64_t row_bytes = 2 * columns * static_cast<int64_t>(sizeof(T));
    const int64_t most = kRowsTogether * row_bytes <= kFirstLevel ? kRowsTogether : kRowsTogether / 2;
    return std::clamp<int64_t>(bytes / row_bytes, 1, most);
  }

  // Threads take whole rows, and each has totals of its own for the weight and the bias.
  template <bool kStream>
  void by_rows(int threads) const {
    const int64_t pieces = pieces_of(columns), stride = (columns + kLanes - 1) / kLanes * kLanes;
    const int64_t group = group_within(2 * kCached), row_bytes = columns * static_cast<int64_t>(sizeof(T));
    const bool fetch = row_bytes >= 2048 && should_fetch_rows(2 * group * row_bytes);  // shorter ones: 0.92 to 1.02
    const int64_t ahead = fetch ? group * columns : 0;
    const int parts = static_cast<int>(std::min<int64_t>(threads, rows));
    Scratch<double> totals(parts * stride * 2);
    parallel_for(rows, parts, [&](int64_t begin, int64_t end, int part) {
      double* weight_totals = grad_weight ? totals + 2 * part * stride : nullptr;
      double* bias_totals = grad_bias ? totals + (2 * part + 1) * stride : nullptr;
      if (weight_totals) std::fill_n(weight_totals, stride, 0.0);
      if (bias_totals) std::fill_n(bias_totals, stride, 0.0);
      for (int64_t first = begin; first < end; first += group) {
        const int64_t count = std::min(group, end - first);
        Row row[kRowsTogether];
        for (int64_t r = 0; r < count; ++r) {
          Gradients sums = piece_sums(first + r, 0);
          for (int64_t piece = 1; piece < pieces; ++piece) sums += piece_sums(first + r, piece);
          row[r] = row_coefficients(first + r, sums);
        }
        gradients<kStream>(first, count, row, 0, columns, weight_totals, bias_totals, ahead);
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
    const int64_t pieces = pieces_of(columns), group = group_within(64 * kCached);
    Scratch<Gradients> partials(group * pieces);
    const int64_t stride = (columns + kLanes - 1) / kLanes * kLanes;
    const bool totals_needed = rows > group;
    Scratch<double> totals(totals_needed ? 2 * stride : 0);
    double* const weight_totals = totals_needed && grad_weight ? totals + 0 : nullptr;
    double* const bias_totals = totals_needed && grad_bias ? totals + stride : nullptr;
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
        Row row[kRowsTogether];
        for (int64_t r = 0; r < count; ++r) {
          Gradients sums;
          for (int64_t i = 0; i < pieces; ++i) sums += partials[r * pieces + i];
          row[r] = row_coefficients(first + r, sums);
        }
        gradients<kStream>(first, count, row, begin, end, weight_totals, bias_totals);
        if constexpr (kStream) end_of_stream();
        if (!totals_needed || first + count < rows) return;
        store_totals(grad_weight, weight_totals, begin, end);
        store_totals(grad_bias, bias_totals, begin, end);
      });
    }
  }

  template <bool kStream>
  void run(int threads) const {
    const bool large_totals = columns * 2 * static_cast<int64_t>(sizeof(double)) > kCached;
    share_rows(rows, columns, threads) || large_totals ? by_columns<kStream>(threads) : by_rows<kStream>(threads);
  }
};

}  // namespace normext::cpu::NORMEXT_ISA
