// columns.h -- passes down the columns of a matrix: each column has its own sums and coefficients.
//
// Rows are summed kRowsAtOnce at a time, so that the coefficients and totals of a column are fetched once for them all.
#pragma once
#include <type_traits>

#include "cpu/cache.h"
#include "cpu/elements/passes.h"

namespace normext::cpu::NORMEXT_ISA {

constexpr int64_t kRowsAtOnce = 8;   // rows in a short sum of columns: see sums.h
constexpr int64_t kPartsAtOnce = 8;  // short sums of half types that are added up before they go to the totals

// float32 is not exact enough for that.
template <class Sum, class T>
constexpr bool kInParts = sizeof(T) == 2 && std::is_same_v<typename Sum::Part, Floats>;

template <class Number>
struct alignas(64) ColumnTable {
  static constexpr int64_t kRoom = 2 * kLanes;  // beyond the last column
  Number at[kMostColumns + kRoom];
};

// A block of columns [column, column_end) of rows [row, row_end), in a row-major matrix of `width` columns and `total`
// elements: its last row may be shorter. At most kMostColumns wide.
struct ColumnBlock {
  int64_t width, total, row, row_end, column, column_end;

  int64_t size() const { return column_end - column; }
  int64_t row_columns_end(int64_t r) const {
    const int64_t length = total - r * width;
    return column_end < length ? column_end : length;
  }
};

// The sum of a few of a table's numbers.
inline double sum_of(const double* p, int64_t count) {
  if (count == 1) return *p;
  Doubles total{};
  for_vectors_once(0, count, [&](int64_t at, int64_t n) NORMEXT_INLINE { total += load(p + at, n); });
  return sum(total);
}

// Sum (sums.h) over each column of a block, added to its totals. Coefficients and totals are indexed from the block's
// first column. Of half types, some short sums are added up as they are before they go to the totals. Inputs as in
// short_sum.
template <class Sum, class Inputs>
class ColumnSums {
  using T = typename Inputs::Element;

 public:
  ColumnSums(const Sum& none, const Inputs& inputs, const ColumnBlock& block,
             const ColumnTable<Scalar<T>> (&coefficients)[Sum::kCoefficients],
             ColumnTable<double> (&totals)[Sum::kSums])
      : none_(none), inputs_(inputs), block_(block), coefficients_(coefficients), totals_(totals) {
    if constexpr (kInParts<Sum, T>)
      for (auto& part : parts_) std::fill_n(part.at, block.size() + part.kRoom, 0);
  }

  void add_all() {
    const bool cut_short = columns_of(block_.row_end - 1) < block_.size();
    const int64_t whole_end = block_.row_end - cut_short;
    for (int64_t row = block_.row; row < whole_end;) {
      const int64_t stop = std::min(whole_end, row + kPartsAtOnce * kRowsAtOnce);
      for (; row + kRowsAtOnce <= stop; row += kRowsAtOnce) add_rows(row, Rows<kRowsAtOnce>{});
      if (row < stop) add_rows(row, stop - row);
      row = stop;
      flush(block_.size());
    }
    if (!cut_short) return;
    add_rows(whole_end, Rows<1>{});
    flush(columns_of(whole_end));
  }

 private:
  template <int64_t kCount>
  using Rows = std::integral_constant<int64_t, kCount>;

  int64_t columns_of(int64_t row) const { return block_.row_columns_end(row) - block_.column; }

  // `rows`: a number, or one of Rows.
  template <class Count>
  void add_rows(int64_t row, Count rows) {
    const int64_t begin = row * block_.width + block_.column, columns = columns_of(row + rows - 1);
    if constexpr (Sum::kDot) {
      int64_t at = 0;
      for (; at + kPairLanes <= columns; at += kPairLanes) add_pair(begin, rows, at, kPairLanes);
      if (at < columns) add_pair(begin, rows, at, columns - at);
    } else {
      for_vectors_once(0, columns, [&](int64_t at, int64_t count) NORMEXT_INLINE { add_one(begin, rows, at, count); });
    }
  }
  // The columns of one vector, or of a pair of them, in rows the first of which begins at `begin`.
  template <class Count>
  NORMEXT_INLINE void add_one(int64_t begin, Count rows, int64_t at, int64_t count) {
    Vector<T> k[Sum::kCoefficients], x[Sum::kInputs];
    for (int i = 0; i < Sum::kCoefficients; ++i) k[i] = load(coefficients_[i].at + at);
    Sum sum = none_;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t from = begin + at + r * block_.width;
      inputs_(from, count, x);
      inputs_.prefetch(from + kRowsAtOnce * block_.width);
      sum.add(x, k, {0, count});
      if constexpr (requires { inputs_.keep(from, count, x); }) inputs_.keep(from, count, x);
    }
    add(at, sum);
  }
  template <class Count>
  NORMEXT_INLINE void add_pair(int64_t begin, Count rows, int64_t at, int64_t count) {
    Sum evens, odds;
    add_dot_rows(inputs_.from, begin + at, block_.width, rows, count, evens, odds);
    add(at, evens);
    add(at + kLanes, odds);
  }
  NORMEXT_INLINE void add(int64_t at, const Sum& sum) {
    for (int i = 0; i < Sum::kSums; ++i) {
      if constexpr (kInParts<Sum, T>)
        store(parts_[i].at + at, load(parts_[i].at + at) + sum.sums[i]);
      else
        store(totals_[i].at + at, load(totals_[i].at + at) + widen(sum.sums[i]));
    }
  }

  // From the parts to the totals.
  void flush(int64_t columns) {
    if (!kInParts<Sum, T>) return;
    for (int i = 0; i < Sum::kSums; ++i) {
      for (int64_t at = 0; at < columns; at += 2 * kLanes) {
        float* const part = parts_[i].at + at;
        double* const to = totals_[i].at + at;
        Floats first = load(part), second = load(part + kLanes);
        if constexpr (Sum::kDot) put_in_order(first, second);
        store(to, load(to) + widen(first));
        store(to + kLanes, load(to + kLanes) + widen(second));
        std::fill_n(part, 2 * kLanes, 0);
      }
    }
  }

  const Sum none_;  // a sum of nothing
  const Inputs inputs_;
  const ColumnBlock block_;
  const ColumnTable<Scalar<T>> (&coefficients_)[Sum::kCoefficients];
  ColumnTable<double> (&totals_)[Sum::kSums];
  ColumnTable<float> parts_[Sum::kSums];
};

// out = map.apply(in, coefficients), element by element, in the order of memory: fetching coefficients anew for every
// vector costs less than writing to several places at once. The coefficients' tables go on beyond the block's last
// column with its first ones, so that a vector may span two rows: whole rows are streamed as one. If `ahead` is not 0,
// it asks for what lies so many elements ahead. `streams` as in map_vectors.
template <class Map, class Inputs, class T, class Streams>
[[gnu::noinline]] void map_columns(const Map map, const Inputs inputs, T* out, const ColumnBlock& block,
                                   const ColumnTable<Scalar<T>> (&coefficients)[Map::kCoefficients], Streams streams,
                                   int64_t ahead) {
  const auto apply = [&](int64_t at, int64_t column, int64_t count) NORMEXT_INLINE {
    Vector<T> k[Map::kCoefficients], x[Map::kInputs];
    for (int i = 0; i < Map::kCoefficients; ++i) k[i] = load(coefficients[i].at + column);
    inputs(at, count, x);
    return map.apply(x, k);
  };
  const auto ask_ahead = [&](int64_t at) NORMEXT_INLINE {
    if (ahead) inputs.prefetch(at + ahead);
  };
  if (streams && block.size() == block.width && block.width >= kLanes) {
    const int64_t begin = block.row * block.width, end = std::min(block.total, block.row_end * block.width);
    int64_t column = 0, next = begin;
    const auto in_rows = [&](int64_t at, int64_t count) NORMEXT_INLINE {
      if (at != next) column = (at - begin) % block.width;
      const auto result = apply(at, column, count);
      next = at + count;
      column += count;
      if (column >= block.width) column -= block.width;
      return result;
    };
    map_vectors(std::true_type{}, out, begin, end, in_rows, ask_ahead);
    return;
  }
  for (int64_t row = block.row; row < block.row_end; ++row) {
    const int64_t begin = row * block.width + block.column, end = row * block.width + block.row_columns_end(row);
    const auto in_row = [&](int64_t at, int64_t count) NORMEXT_INLINE { return apply(at, at - begin, count); };
    // Up to a line first, and then on: no vector lies across two lines. (A loop, so that there is one copy of the
    // code.)
    int64_t stop = streams ? end : std::min(end, begin + before_line(out + begin));
    for (int64_t at = begin; at < end; at = stop, stop = end) map_vectors(streams, out, at, stop, in_row, ask_ahead);
  }
}

}  // namespace normext::cpu::NORMEXT_ISA
