// columns.h -- passes down the columns of a matrix: each column has its own sums and coefficients.
//
// Rows are walked kShort at a time, so that the coefficients and totals of a column are fetched once for them all.
#pragma once
#include <type_traits>

#include "segments.h"

namespace normext::cpu::NORMEXT_ISA {

constexpr int64_t kBlockColumns = 1024;  // so many columns' coefficients and totals stay in the first-level cache

template <class Number>
struct alignas(64) ColumnTable {
  Number at[kBlockColumns];
};

// A block of columns [column, column_end) of rows [row, row_end), in a row-major matrix of `width` columns and `total`
// elements: its last row may be shorter. At most kBlockColumns wide.
struct ColumnBlock {
  int64_t width, total, row, row_end, column, column_end;

  int64_t row_columns_end(int64_t r) const {
    const int64_t length = total - r * width;
    return column_end < length ? column_end : length;
  }
};

// Calls f(row, rows, column, count) for each vector of the block and as many `rows`, a constant 1 or kShort; `count` is
// the number of columns in the vector, below kLanes at a row's end only.
template <class F>
void for_column_vectors(const ColumnBlock& block, const F& f) {
  const auto rows = [&](int64_t row, auto count) {
    const int64_t end = block.row_columns_end(row + count() - 1);
    int64_t column = block.column;
    for (; column + kLanes <= end; column += kLanes) f(row, count, column, int64_t{kLanes});
    if (column < end) f(row, count, column, end - column);
  };
  using One = std::integral_constant<int, 1>;
  using Short = std::integral_constant<int, kShort>;
  int64_t row = block.row;
  for (; row + kShort <= block.row_end && block.row_columns_end(row + kShort - 1) == block.column_end; row += kShort)
    rows(row, Short{});
  for (; row < block.row_end; ++row) rows(row, One{});
}

template <class T, int kInputs>
void load_columns(const T* const (&in)[kInputs], int64_t offset, Vector<T> (&x)[kInputs], int64_t count) {
  if (count == kLanes)
    load_inputs(in, offset, x);
  else
    load_inputs(in, offset, x, count);
}

// Adds a short sum (sums.h) of each column to totals; coefficients and totals are indexed from the block's first
// column.
template <class Sum, class T>
void reduce_columns(const T* const (&in)[Sum::kInputs], const ColumnBlock& block,
                    const ColumnTable<Scalar<T>> (&coefficients)[Sum::kCoefficients],
                    ColumnTable<double> (&totals)[Sum::kSums]) {
  for_column_vectors(block, [&](int64_t row, auto rows, int64_t column, int64_t count) {
    Vector<T> k[Sum::kCoefficients], x[Sum::kInputs];
    for (int i = 0; i < Sum::kCoefficients; ++i) k[i] = load(coefficients[i].at + column - block.column);
    Sum part;
    for (int r = 0; r < rows(); ++r) {
      load_columns(in, (row + r) * block.width + column, x, count);
      part.add(x, k, count);
    }
    Doubles sums[Sum::kSums];
    for (int i = 0; i < Sum::kSums; ++i) sums[i] = load(totals[i].at + column - block.column);
    part.flush(sums);
    for (int i = 0; i < Sum::kSums; ++i) store(totals[i].at + column - block.column, sums[i]);
  });
}

// out = Map::apply(in, coefficients), element by element, in the order of memory: fetching coefficients anew for every
// row costs less than writing to kShort places at once.
template <class Map, class T>
void map_columns(const T* const (&in)[Map::kInputs], T* out, const ColumnBlock& block,
                 const ColumnTable<Scalar<T>> (&coefficients)[Map::kCoefficients]) {
  const auto step = [&](int64_t at, int64_t column, int64_t count) {
    Vector<T> k[Map::kCoefficients], x[Map::kInputs];
    for (int i = 0; i < Map::kCoefficients; ++i) k[i] = load(coefficients[i].at + column - block.column);
    load_columns(in, at, x, count);
    if (count == kLanes)
      store(out + at, Map::apply(x, k));
    else
      store(out + at, Map::apply(x, k), count);
  };
  for (int64_t row = block.row; row < block.row_end; ++row) {
    const int64_t start = row * block.width, end = block.row_columns_end(row);
    int64_t column = block.column;
    for (; column + kLanes <= end; column += kLanes) step(start + column, column, kLanes);
    if (column < end) step(start + column, column, end - column);
  }
}

}  // namespace normext::cpu::NORMEXT_ISA
