// rows.h -- how the row norms, forward and backward, cut rows into work.
//
// Rows go to threads. Where there are too few of them, the threads share each row by columns. Either way the sums of a
// row are taken over pieces of kPiece columns and merged in order: a row's result depends on nothing but the row.
#pragma once
#include <algorithm>

#include "cpu/cache.h"
#include "cpu/elements/parallel.h"
#include "cpu/elements/passes.h"
#include "cpu/elements/scratch.h"
#include "ops/row_norm.h"

namespace normext::cpu::NORMEXT_ISA {

constexpr int64_t kPiece = 4096;        // columns
constexpr int64_t kRowsTogether = 8;    // rows that go through each step together, if they are short
constexpr int64_t kFirstLevel = 32768;  // bytes that surely stay in a first-level cache

inline int64_t pieces_of(int64_t columns) { return (columns + kPiece - 1) / kPiece; }
inline int64_t piece_length(int64_t columns, int64_t piece) { return std::min(kPiece, columns - piece * kPiece); }

template <class P, class V>
V load_or(const P* p, int64_t at, int64_t count, V otherwise) {
  return p ? load(p + at, count) : otherwise;
}

// The rows of an array, where they lie.
template <class T>
struct StridedRows {
  const T* first;
  RowStrides strides;

  const T* operator[](int64_t row) const {
    if (row < strides.inner) return first + row * strides.inner_stride;
    return first + row / strides.inner * strides.outer_stride + row % strides.inner * strides.inner_stride;
  }
  // Where `count` rows begin.
  void find(int64_t row, int64_t count, const T** begin) const {
    const T* at = (*this)[row];
    int64_t left = strides.inner - (row < strides.inner ? row : row % strides.inner);
    for (int64_t r = 0; r < count; ++r, at += strides.inner_stride) {
      if (left-- == 0) {
        at += strides.outer_stride - strides.inner * strides.inner_stride;
        left = strides.inner - 1;
      }
      begin[r] = at;
    }
  }
  // How many rows, up to `most`, lie at a distance of inner_stride from `row` on.
  int64_t even_rows(int64_t row, int64_t most) const {
    return row + most <= strides.inner ? most : std::min(most, strides.inner - row % strides.inner);
  }
};

template <class T>
StridedRows<T> contiguous_rows(const T* first, int64_t rows, int64_t columns) {
  return {first, {rows, 0, columns}};
}

// Threads share rows if dealing out whole rows would leave some of them idle for long.
inline bool share_rows(int64_t rows, int64_t columns, int threads) {
  return columns >= 4 * kPiece && rows < 4 * threads && rows % threads != 0;
}

}  // namespace normext::cpu::NORMEXT_ISA
