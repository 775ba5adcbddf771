// row_gradients.h -- gradients of some rows, on one thread: the sums of a row, then everything elementwise in one pass,
// the products for the weight's and bias's gradients included.
#pragma once
#include "cpu/rows/rows.h"
#include "cpu/rows/statistics.h"

namespace normext::cpu::NORMEXT_ISA {

template <class T, class P, class Statistics>
struct RowGradients {
  using S = Scalar<T>;
  using V = Vector<T>;

  StridedRows<T> grad_output, input;
  const T* grad_sum;
  const S *mean, *rstd;
  const P* weight;
  const T* input_weight;  // the weight in the input's dtype, if it is to be had
  T* grad_input;
  P *grad_weight, *grad_bias;
  int64_t columns;

  RowGradients(const RowNormBackward& op, const T* input_weight)
      : grad_output{static_cast<const T*>(op.grad_output), op.grad_output_strides},
        input{static_cast<const T*>(op.input), op.input_strides},
        grad_sum(static_cast<const T*>(op.grad_sum)),
        mean(static_cast<const S*>(op.mean)),
        rstd(static_cast<const S*>(op.rstd)),
        weight(static_cast<const P*>(op.weight)),
        input_weight(input_weight),
        grad_input(static_cast<T*>(op.grad_input)),
        grad_weight(static_cast<P*>(op.grad_weight)),
        grad_bias(static_cast<P*>(op.grad_bias)),
        columns(op.columns) {}

  // Some rows that go through each step together, at even distances: where they begin, and theirs of the gradients, or
  // null. If `ahead` is not 0, what lies so many rows ahead is asked for.
  struct Rows {
    int64_t first, count, ahead;
    const T *grad_output, *input, *grad_sum;
    T* grad_input;
    int64_t grad_output_stride, input_stride;
  };
  Rows rows_from(int64_t first, int64_t most, int64_t ahead = 0) const {
    const int64_t count = grad_output.even_rows(first, input.even_rows(first, most));
    return {first,
            count,
            ahead,
            grad_output[first],
            input[first],
            grad_sum ? grad_sum + first * columns : nullptr,
            grad_input ? grad_input + first * columns : nullptr,
            grad_output.strides.inner_stride,
            input.strides.inner_stride};
  }

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
  NORMEXT_INLINE bool add_dot_products(const T* dy, const T* x, int64_t piece, Doubles (&totals)[2]) const {
    if constexpr (kDotSums<T>) {
      if (!weight)
        add_piece<typename Statistics::template DotProducts<false>>(piece, Inputs<T, 2>({dy, x}), {}, totals);
      else if (input_weight)
        add_piece<typename Statistics::template DotProducts<true>>(piece, Inputs<T, 3>({dy, x, input_weight}), {},
                                                                   totals);
      return !weight || input_weight;
    }
    return false;
  }

  // The sums of one piece of a row, which is dy and x.
  Gradients piece_sums(int64_t row, const T* dy, const T* x, int64_t piece) const {
    const auto weighted = [dy, x, w = weight](int64_t at, int64_t count, V(&in)[2]) NORMEXT_INLINE {
      in[0] = load(dy + at, count) * load_or(w, at, count, broadcast(S{1}));
      in[1] = load(x + at, count);
    };
    if constexpr (sizeof(T) == 2) {
      if (near(row)) {
        Doubles products[2] = {};
        if (!add_dot_products(dy, x, piece, products))
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

  // What a row's elementwise pass needs: xhat = (x - center) * rstd + shift, where the center is the mean or, near
  // zero, zero.
  struct Row {
    S center, rstd, shift, slope, level;
  };
  template <bool kAtZero>  // all centers are zero
  struct Coefficients {
    V center, rstd, shift, slope, level;

    explicit Coefficients(const Row& row)
        : center(broadcast(row.center)),
          rstd(broadcast(row.rstd)),
          shift(broadcast(row.shift)),
          slope(broadcast(row.slope)),
          level(broadcast(row.level)) {}
    V xhat(V x) const { return fma(kAtZero ? x : x - center, rstd, shift); }
    V gradient(V dy, V weight, V xhat) const { return fma(xhat, slope, fma(dy, weight, level)) * rstd; }
  };
  Row row_coefficients(int64_t row, const Gradients& sums) const {
    const double n = static_cast<double>(columns);
    if (!Statistics::kCentered) return {0, rstd[row], 0, static_cast<S>(-sums.g_xhat / n), 0};
    const double shift = -sums.offset(n), near_shift = shift - static_cast<double>(mean_of(row)) * rstd[row];
    return {near(row) ? S{0} : mean_of(row), rstd[row], static_cast<S>(near(row) ? near_shift : shift),
            static_cast<S>(-sums.corrected(n) / n), static_cast<S>(-sums.g / n)};
  }

  // The sums of row r of some.
  Gradients row_sums(const Rows& rows, int64_t r) const {
    const T *dy = rows.grad_output + r * rows.grad_output_stride, *x = rows.input + r * rows.input_stride;
    Gradients sums = piece_sums(rows.first + r, dy, x, 0);
    for (int64_t piece = 1; piece < pieces_of(columns); ++piece) sums += piece_sums(rows.first + r, dy, x, piece);
    return sums;
  }

  // Columns [begin, end) of some rows: writes grad_input and adds to the weight's and bias's totals, or writes their
  // gradients, if there are no totals because these are all the rows, in one pass over both. Rows to be streamed that
  // share cache lines are staged if they are short; else each is streamed on its own, some columns at a time, which the
  // parameters' gradients then find in cache. kAdds: grad_sum is there.
  template <bool kStream, bool kAtZero, bool kAdds>
  void gradients(const Rows& rows, const Row* row, int64_t begin, int64_t end, double* weight_totals,
                 double* bias_totals) const {
    const int64_t row_bytes = columns * static_cast<int64_t>(sizeof(T));
    T* const dx = rows.grad_input;
    const bool whole = columns % kLanes == 0 && whole_lines(dx, row_bytes);
    if (!kStream || !dx || whole)
      return elementwise<kStream, kAtZero, kAdds>(rows, row, begin, end, dx, weight_totals, bias_totals);
    if (should_stage(dx, row_bytes)) {
      Stage<T> stage;
      elementwise<false, kAtZero, kAdds>(rows, row, begin, end, stage.at, weight_totals, bias_totals);
      return stage.stream_to(dx, rows.count * columns);
    }
    for (int64_t at = begin, stop; at < end; at = stop) {
      stop = end - at < kStep + kStep / 4 ? end : at + kStep;
      for (int64_t r = 0; r < rows.count; ++r)
        stream_row<kAtZero, kAdds>(rows, r, row[r], at == begin ? begin : line_start(dx + r * columns, at),
                                   stop == end ? end : line_start(dx + r * columns, stop));
      if (grad_weight || grad_bias)
        elementwise<false, kAtZero, false>(rows, row, at, stop, nullptr, weight_totals, bias_totals);
    }
  }

  // Columns [begin, end) of row r of some: grad_input alone, past the caches.
  template <bool kAtZero, bool kAdds>
  NORMEXT_INLINE void stream_row(const Rows& rows, int64_t r, const Row& row, int64_t begin, int64_t end) const {
    const T* const dy = rows.grad_output + r * rows.grad_output_stride;
    const T* const x = rows.input + r * rows.input_stride;
    const T* const added = rows.grad_sum + (kAdds ? r * columns : 0);
    const V one = broadcast(S{1});
    const Coefficients<kAtZero> k(row);
    map_vectors(std::true_type{}, rows.grad_input + r * columns, begin, end,
                [&, w = weight](int64_t at, int64_t n) NORMEXT_INLINE {
                  const V gradient = k.gradient(load(dy + at, n), load_or(w, at, n, one), k.xhat(load(x + at, n)));
                  if constexpr (kAdds)
                    return gradient + load(added + at, n);
                  else
                    return gradient;
                });
  }

  template <bool kStream>
  void gradients(const Rows& rows, const Row* row, int64_t begin, int64_t end, double* weight_totals,
                 double* bias_totals) const {
    bool at_zero = sizeof(T) == 2 || !Statistics::kCentered;
    for (int64_t r = 0; r < rows.count; ++r) at_zero = at_zero && row[r].center == 0;
    constexpr bool kNeverCentered = !Statistics::kCentered;
    if (rows.grad_sum)
      gradients<kStream, kNeverCentered, true>(rows, row, begin, end, weight_totals, bias_totals);
    else if (kNeverCentered || at_zero)
      gradients<kStream, true, false>(rows, row, begin, end, weight_totals, bias_totals);
    else if constexpr (!kNeverCentered)
      gradients<kStream, false, false>(rows, row, begin, end, weight_totals, bias_totals);
    if (kNeverCentered && grad_bias) add_bias_gradients(rows, begin, end, bias_totals);
  }

  // Adds sums over a few rows to totals, or writes them, rounded, if there are none.
  static NORMEXT_INLINE void keep_sums(double* totals, P* gradient, int64_t at, V sums, int64_t count) {
    if (totals)  // there is room for whole vectors; the rest is never read
      store(totals + at, load(totals + at) + widen(sums));
    else if (gradient)
      store(gradient + at, sums, count);
  }

  // Apart from the rest for norms without a mean, where a bias is rare.
  NORMEXT_NOINLINE void add_bias_gradients(const Rows& rows, int64_t begin, int64_t end, double* bias_totals) const {
    for_vectors_once(begin, end, [&](int64_t at, int64_t count) NORMEXT_INLINE {
      V sums{};
      for (int64_t r = 0; r < rows.count; ++r)
        sums = sums + load(rows.grad_output + r * rows.grad_output_stride + at, count);
      keep_sums(bias_totals, grad_bias, at, sums, count);
    });
  }

  // The first row's grad_input begins at dx, if it is wanted.
  template <bool kStream, bool kAtZero, bool kAdds>
  NORMEXT_NOINLINE void elementwise(const Rows& rows, const Row* row, int64_t begin, int64_t end, T* dx,
                                    double* weight_totals, double* bias_totals) const {
    const V one = broadcast(S{1});
    // Copies: what is referred to must be fetched again after every store.
    const int64_t dy_stride = rows.grad_output_stride, x_stride = rows.input_stride, dx_stride = columns;
    const int64_t ahead = rows.ahead, dy_ahead = ahead * dy_stride, x_ahead = ahead * x_stride;
    const auto vectors = [=, this, first_dy = rows.grad_output, first_x = rows.input, added = rows.grad_sum,
                          row_count = rows.count]<int kVectors>(int64_t at, int64_t count) NORMEXT_INLINE {
      const T *grad_output = first_dy + at, *x = first_x + at;
      int64_t i = at;
      V w[kVectors], dy_xhat[kVectors] = {}, dy_sum[kVectors] = {}, gradient[kVectors];
      for (int v = 0; v < kVectors; ++v) w[v] = load_or(weight, at + v * kLanes, count, one);
      for (int64_t r = 0; r < row_count; ++r, grad_output += dy_stride, x += x_stride, i += dx_stride) {
        const Coefficients<kAtZero> k(row[r]);
        if (ahead) {
          __builtin_prefetch(grad_output + dy_ahead, 0, 2);
          __builtin_prefetch(x + x_ahead, 0, 2);
        }
        for (int v = 0; v < kVectors; ++v) {
          const V dy = load(grad_output + v * kLanes, count), xhat = k.xhat(load(x + v * kLanes, count));
          dy_xhat[v] = fma(dy, xhat, dy_xhat[v]);
          if constexpr (Statistics::kCentered) dy_sum[v] = dy_sum[v] + dy;
          gradient[v] = k.gradient(dy, w[v], xhat);
          if constexpr (kAdds) gradient[v] = gradient[v] + load(added + i + v * kLanes, count);
        }
        if (!dx) continue;
        T* const to = dx + i;
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
};

}  // namespace normext::cpu::NORMEXT_ISA
