// normalized_rows.h -- rows in, normalized rows out, on one thread. A row stays in cache between the pass that sums it
// and the pass that writes.
#pragma once
#include <tuple>
#include <utility>

#include "cpu/rows/rows.h"
#include "cpu/rows/statistics.h"

namespace normext::cpu::NORMEXT_ISA {

// Sums of d and d^2, d = x - shift; by dot products shift is zero.
template <class Sum, class T>
std::pair<double, double> sums_about(Scalar<T> shift, const T* x, int64_t count) {
  const T* const in[1] = {x};
  Doubles sums[2] = {};
  RunSums<Sum, T, Inputs<T, 1>>(Inputs<T, 1>(in), 0, count, {shift}, sums).finish();
  return {sum(sums[0]), sum(sums[1])};
}

// A value near the mean: at least a vector of elements is there.
template <class T>
Scalar<T> guess(const T* x) {
  return static_cast<Scalar<T>>(sum(widen(load(x))) / kLanes);
}

// Of `count` elements, at least one, in float64.
template <class Statistics, class T>
Moments wide_moments_of(const T* x, int64_t count) {
  using Sums = typename Statistics::WideSums;
  Scalar<T> shift = Statistics::kCentered ? load_one(x) : 0;
  auto [first, second] = sums_about<Sums>(shift, x, count);
  if (Statistics::kCentered && kTwoPasses<T>) {
    shift += first / count;
    std::tie(first, second) = sums_about<Sums>(shift, x, count);
  }
  return moments_from_sums(count, shift, first, second);
}

// What the first sums are taken about, unless elements are few or float64.
template <class Statistics, class T>
Scalar<T> first_shift(const T* x) {
  return kDotSums<T> || !Statistics::kCentered ? 0 : guess(x);
}

// Where the first sums are not sound, or not taken.
template <class Statistics, class T>
Moments mended_moments_of(const T* x, int64_t count, double eps) {
  if (Statistics::kCentered && kDotSums<T> && count >= kFew) {
    const auto shift = guess(x);
    const auto [first, second] = sums_about<typename Statistics::FloatSums>(shift, x, count);
    if (sound<double>(count, first, second, eps)) return moments_from_sums(count, shift, first, second);
  }
  return wide_moments_of<Statistics>(x, count);
}

// (x * scale + shift) * weight + bias, for x and scale of 8 and 24 bits, is no subnormal number if shift is no smaller
// than this, and weight and bias are zero or no smaller than that: the inner sum, however much cancels, is zero or at
// least 2^-94, and the outer one zero or at least 2^-124.
constexpr float kNormalShift = 0x1p-60f, kNormalParameter = 0x1p-30f;
template <class P>
bool are_normal(const P* parameter, int64_t count) {
  Ints normal = ~Ints{};
  if (parameter)
    for_vectors(0, count, [&](int64_t at, int64_t n) {
      const Floats p = load(parameter + at, n);
      normal &= (p == 0) | ((Floats)((Ints)p & 0x7fffffff) >= kNormalParameter);
    });
  int32_t all = -1;
  for (int i = 0; i < kLanes; ++i) all &= normal[i];
  return all != 0;
}

// Rows that are read where they lie.
template <class T>
struct InPlace {
  static constexpr bool kMakes = false;
  StridedRows<T> rows;
  int64_t row_bytes;

  int64_t rows_within(int64_t bytes) const { return bytes / row_bytes; }
  void find(int64_t first, int64_t count, const T** x) const { rows.find(first, count, x); }
};

template <class T, class P, class Statistics>
struct NormalizedRows {
  using S = Scalar<T>;
  using V = Vector<T>;
  using FirstSums = typename Statistics::FirstSums;

  StridedRows<T> input;
  const P *weight, *bias;
  T* output;
  S *mean, *rstd;
  int64_t columns;
  double eps;
  bool normal_parameters = false;  // where it matters, and there are rows enough for it to be worth a look

  explicit NormalizedRows(const RowNormForward& op)
      : input{static_cast<const T*>(op.input), op.input_strides},
        weight(static_cast<const P*>(op.weight)),
        bias(static_cast<const P*>(op.bias)),
        output(static_cast<T*>(op.output)),
        mean(static_cast<S*>(op.mean)),
        rstd(static_cast<S*>(op.rstd)),
        columns(op.columns),
        eps(op.eps) {}

  // Of parameters that serve so many rows.
  void look_at_parameters(int64_t rows) {
    if constexpr (kLooksForSubnormals<T>)
      normal_parameters = rows >= 64 && are_normal(weight, columns) && are_normal(bias, columns);
  }

  // Of one piece of row x. beside(sums) may go along with its sums. kAhead as in Inputs.
  template <int64_t kAhead, class F>
  Moments piece_moments(const T* x, int64_t piece, const F& beside) const {
    const T* const in[1] = {x + piece * kPiece};
    const int64_t count = piece_length(columns, piece);
    if (kTwoPasses<T> || count < kFew) {
      NoSteps none;
      beside(none);
      return mended_moments_of<Statistics>(in[0], count, eps);
    }
    using From = Inputs<T, 1, kAhead>;
    const auto shift = first_shift<Statistics>(in[0]);
    Doubles sums[2] = {};
    RunSums<FirstSums, T, From> run(From(in), 0, count, {shift}, sums);
    beside(run);
    run.finish();
    const double first = sum(sums[0]), second = sum(sums[1]);
    return sound<double>(count, first, second, eps) ? moments_from_sums(count, shift, first, second)
                                                    : mended_moments_of<Statistics>(in[0], count, eps);
  }

  // Columns [begin, end) of the output of row x, xhat(x) * weight + bias, where the row's output begins at `to`. If
  // `ahead` is not 0, it asks for what lies so many elements ahead. `other` is work to go along with it. kNormal: no
  // output is a subnormal number.
  template <bool kStream, bool kNormal, class F, class Steps>
  NORMEXT_INLINE void write(const T* x, T* to, int64_t begin, int64_t end, int64_t ahead, const F& xhat,
                            Steps& other) const {
    const V one = broadcast(S{1}), zero = broadcast(S{0});
    map_vectors(
        std::bool_constant<kStream>{}, to, begin, end,
        [&, w = weight, b = bias](int64_t at, int64_t count) NORMEXT_INLINE {
          const V y = fma(xhat(load(x + at, count)), load_or(w, at, count, one), load_or(b, at, count, zero));
          if constexpr (kNormal)
            return NormalFloats{y};
          else
            return y;
        },
        [=](int64_t at) NORMEXT_INLINE {
          if (ahead) __builtin_prefetch(x + at + ahead, 0, 2);
        },
        other);
  }

  // xhat is (x - mean) * rstd. The mean is split into high + low: float32 cannot hold it all where it is far from zero,
  // and the difference must be exact. Half types do without where it is near.
  template <bool kStream, class Steps>
  NORMEXT_NOINLINE void normalize(const T* x, T* to, double mean, double rstd, int64_t begin, int64_t end,
                                  int64_t ahead, Steps&& other) const {
    const V scale = broadcast(static_cast<S>(rstd));
    if ((sizeof(T) == 2 || !Statistics::kCentered) && near_zero(mean, rstd)) {
      const auto shift = static_cast<S>(-mean * rstd);
      const auto xhat = [=, shift = broadcast(shift)](V x) NORMEXT_INLINE { return fma(x, scale, shift); };
      if constexpr (kLooksForSubnormals<T>) {
        if (normal_parameters && std::abs(shift) >= kNormalShift)
          return write<kStream, true>(x, to, begin, end, ahead, xhat, other);
      }
      return write<kStream, false>(x, to, begin, end, ahead, xhat, other);
    }
    const auto high = static_cast<S>(mean);
    const V center = broadcast(high), shift = broadcast(static_cast<S>((high - mean) * rstd));
    const auto xhat = [=](V x) NORMEXT_INLINE { return fma(x - center, scale, shift); };
    write<kStream, false>(x, to, begin, end, ahead, xhat, other);
  }

  // For `count` rows, or as many as have their two sums in one vector: a shift, and sums of d and d^2, d = x - shift.
  // The lanes of all are summed in the same instructions.
  static constexpr int kRowsSummed = kLanes / 2;
  void short_row_sums(const T* const* x, int64_t count, double* shift, double* first, double* second) const {
    Floats lanes[kLanes] = {};
    float near[kLanes] = {};
    if constexpr (!kDotSums<T> && Statistics::kCentered) {
      for (int r = 0; r < kRowsSummed && r < count; ++r) lanes[r] = load(x[r]);
      store(near, sum_each(lanes) * (1.0f / kLanes));
    }
    Doubles totals{};
    for (int64_t at = 0, stop; at < columns; at = stop) {
      stop = std::min(columns, at + kShort / 2 * kLanes);  // the sums of lanes are float32's, too
      for (int r = 0; r < kRowsSummed && r < count; ++r) {
        const T* const in[1] = {x[r]};
        if constexpr (kDotSums<T>) {
          const auto short_sums = short_dot_sum<FirstSums, 0>(in, 0, at, stop);
          lanes[r] = short_sums.sums[0];
          lanes[r + kRowsSummed] = short_sums.sums[1];
        } else {
          const Floats k[1] = {broadcast(near[r])};
          const auto short_sums = short_sum<FirstSums>(0, at, stop, Inputs<T, 1>(in), k);
          lanes[r] = short_sums.sums[0];
          lanes[r + kRowsSummed] = short_sums.sums[1];
        }
      }
      totals += widen(sum_each(lanes));
    }
    for (int r = 0; r < kRowsSummed; ++r) shift[r] = near[r];
    store_raw(first, totals.low);
    store_raw(second, totals.high);
  }

  // Some rows that go through each step together, where they are, and their statistics.
  struct Rows {
    int64_t first, count;
    const T* x[kRowsTogether];
    double means[kRowsTogether], vars[kRowsTogether];
  };

  // From the sums of whole rows, about `shift`. The steps that wait for each other are taken for all at once.
  void settle(Rows& group, const double* shift, const double* first, const double* second) const {
    const double n = static_cast<double>(columns);
    int64_t is_sound[kRowsTogether];
    using Numbers = Doubles::Half;
    for (int64_t r = 0; r < kRowsTogether; r += kRowsSummed) {
      const auto s = load_raw<Numbers>(shift + r), f = load_raw<Numbers>(first + r), ff = load_raw<Numbers>(second + r);
      store_raw(group.means + r, mean_from_sums(n, s, f));
      store_raw(group.vars + r, m2_from_sums(n, f, ff) / n);
      store_raw(is_sound + r, sound(n, f, ff, eps));
    }
    for (int64_t r = 0; r < group.count; ++r) {
      if (is_sound[r]) continue;
      const Moments moments = mended_moments_of<Statistics>(group.x[r], columns, eps);
      group.means[r] = moments.mean;
      group.vars[r] = moments.variance();
    }
  }

  void short_rows_statistics(Rows& group) const {
    double shift[kRowsTogether] = {}, first[kRowsTogether] = {}, second[kRowsTogether] = {};
    for (int64_t r = 0; r < group.count; r += kRowsSummed)
      short_row_sums(group.x + r, group.count - r, shift + r, first + r, second + r);
    settle(group, shift, first, second);
  }

  // Of rows that take several short sums. beside(r, sums) may go along with those of row r of the group.
  template <int64_t kAhead, class F>
  void long_rows_statistics(Rows& group, const F& beside) const {
    using From = Inputs<T, 1, kAhead>;
    double shift[kRowsTogether] = {}, first[kRowsTogether] = {}, second[kRowsTogether] = {};
    for (int64_t r = 0; r < group.count; ++r) {
      const T* const in[1] = {group.x[r]};
      Doubles sums[2] = {};
      shift[r] = first_shift<Statistics>(in[0]);
      RunSums<FirstSums, T, From> run(From(in), 0, columns, {static_cast<S>(shift[r])}, sums);
      beside(r, run);
      run.finish();
      first[r] = sum(sums[0]);
      second[r] = sum(sums[1]);
    }
    settle(group, shift, first, second);
  }

  // beside(r, piece, sums) may go along with the sums of a piece of row r of the group, if rows take several short
  // sums.
  template <int64_t kAhead, class F>
  void statistics(Rows& group, const F& beside) const {
    const int64_t pieces = pieces_of(columns);
    if constexpr (!kTwoPasses<T>) {
      if (columns > kShort * kLanes && pieces == 1)
        return long_rows_statistics<kAhead>(group, [&](int64_t r, auto& sums) NORMEXT_INLINE { beside(r, 0, sums); });
      if (columns >= kFew && pieces == 1) return short_rows_statistics(group);
    }
    for (int64_t r = 0; r < group.count; ++r) {
      Moments moments;
      for (int64_t piece = 0; piece < pieces; ++piece)
        moments += piece_moments<kAhead>(group.x[r], piece, [&](auto& sums) NORMEXT_INLINE { beside(r, piece, sums); });
      group.means[r] = moments.mean;
      group.vars[r] = moments.variance();
    }
  }

  // Rows [begin, end) are stored, streamed or staged. While a group of long ones is normalized, the next one is summed.
  // `source` is InPlace, or makes the rows (Sums), those of the next group while this one is normalized.
  template <bool kStream, class Source>
  void normalize_rows(int64_t begin, int64_t end, bool staged, Source&& source) const {
    constexpr bool kMakes = std::decay_t<Source>::kMakes;
    const int64_t row_bytes = columns * static_cast<int64_t>(sizeof(T)), pieces = pieces_of(columns);
    // The next rows are summed while these are normalized, or asked for. Summing pays for rows of two short sums or so,
    // and for rows that are too long to be asked for; with AVX2, where it waits for no memory, it does not (0.85
    // to 1.0).
    const bool along =
        kVectorBytes == 64 && !kTwoPasses<T> && !kMakes && ((columns > kStep && columns <= 2 * kStep) || pieces > 2);
    const int64_t together = kTwoPasses<T> || columns < kFew || pieces > 1 ? 1 : source.rows_within(kFirstLevel);
    const int64_t most = std::clamp<int64_t>(together, 1, kRowsTogether);
    const bool fetch = !kMakes && !along && should_fetch_rows(most * row_bytes);
    const int64_t ahead = fetch ? most * input.strides.inner_stride : 0;
    Stage<T> stage;
    Rows groups[2] = {}, *group = groups, *next = groups + 1;
    double rstds[kRowsTogether];
    const auto begin_at = [&](Rows& rows, int64_t first) {
      rows.first = first;
      rows.count = std::min(most, end - first);
      source.find(first, rows.count, rows.x);
    };
    const auto normalize_row = [&](int64_t r, int64_t from, int64_t to, auto&& other) NORMEXT_INLINE {
      T* out = staged ? stage.at + r * columns : output + (group->first + r) * columns;
      if constexpr (kMakes) out = source.output_or(r, out);
      normalize<kStream>(group->x[r], out, group->means[r], rstds[r], from, to, ahead, other);
    };
    const auto normalize_piece = [&](int64_t r, int64_t piece, auto& sums) NORMEXT_INLINE {
      normalize_row(r, piece * kPiece, piece * kPiece + piece_length(columns, piece), sums);
    };
    const auto nothing = [](auto&&...) {};
    begin_at(*group, begin);
    if constexpr (kMakes) source.make_all();
    statistics<0>(*group, nothing);
    while (group->count > 0) {
      for (int64_t r = 0; r < kRowsTogether; ++r) rstds[r] = reciprocal_std(group->vars[r], eps);
      for (int64_t r = 0; r < group->count; ++r) {
        if constexpr (Statistics::kCentered) mean[group->first + r] = static_cast<S>(group->means[r]);
        rstd[group->first + r] = static_cast<S>(rstds[r]);
      }
      begin_at(*next, group->first + group->count);
      if (along) statistics<kAskAhead<T>>(*next, normalize_piece);
      for (int64_t r = along ? next->count : 0; r < group->count; ++r) {
        if constexpr (kMakes)
          normalize_row(r, 0, columns, source.row(r));
        else
          normalize_row(r, 0, columns, NoSteps{});
      }
      if constexpr (kMakes) source.finish(group->first, group->count);
      if (!along) statistics<0>(*next, nothing);
      if (staged) stage.stream_to(output + group->first * columns, group->count * columns);
      std::swap(group, next);
    }
  }
};

}  // namespace normext::cpu::NORMEXT_ISA
