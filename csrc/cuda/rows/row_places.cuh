// row_places.cuh -- where rows begin in memory, and which line of parameters is whose.
#pragma once
#include <algorithm>

#include "cuda/elements/launch.cuh"
#include "ops/row_norm.h"

namespace normext::cuda {

// RowStrides, prepared for a device that takes long to divide: of a row below 2^31, row / inner is the upper half of
// row * reciprocal, shifted. Where one stride leads to all rows, the reciprocal is zero.
class RowPlaces {
 public:
  RowPlaces(const RowStrides& strides, int64_t rows)
      : stride_(strides.inner == 1 ? strides.outer_stride : strides.inner_stride),
        jump_(strides.outer_stride - strides.inner * strides.inner_stride) {
    if (strides.inner <= 1 || strides.inner >= rows || jump_ == 0) return;
    const auto inner = static_cast<uint64_t>(strides.inner);
    while (uint64_t{2} << shift_ < inner) ++shift_;  // inner <= 2^(shift + 1)
    reciprocal_ = static_cast<unsigned>(((uint64_t{1} << 32 << shift_) + inner - 1) / inner);
  }

  // In elements.
  __device__ int64_t operator[](int64_t row) const {
    int64_t place = row * stride_;
    if (reciprocal_) place += int64_t{__umulhi(static_cast<unsigned>(row), reciprocal_) >> shift_} * jump_;
    return place;
  }

  // Whether all rows begin at vectors of T, if the first does.
  template <class T>
  bool is_aligned() const {
    return stride_ % kVec<T> == 0 && (reciprocal_ == 0 || jump_ % kVec<T> == 0);
  }

 private:
  int64_t stride_, jump_;
  unsigned reciprocal_ = 0, shift_ = 0;
};

// Bytes of one of the parameters of rows of T.
template <class T>
int64_t parameter_bytes(DType param_dtype) {
  return sizeof(T) == 2 && param_dtype == DType::float32 ? 4 : sizeof(T);
}

// Lines of one parameter, whose type is known at run time only; or null.
struct Lines {
  const void* of;
  int64_t bytes;  // from one to the next

  __device__ const void* operator[](int64_t line) const {
    return of ? static_cast<const char*>(of) + line * bytes : nullptr;
  }
  bool are_aligned() const { return reinterpret_cast<uintptr_t>(of) % 16 == 0 && bytes % 16 == 0; }
};

template <class Op>
int64_t lines_of(const Op& op) {
  return ceil_div(op.rows, op.lines.rows_per_line);
}
// Where there is one line, the next is of no interest.
template <class T, class Op>
Lines weights_of(const Op& op) {
  return {op.weight, lines_of(op) == 1 ? 0 : op.lines.weight_stride * parameter_bytes<T>(op.param_dtype)};
}
template <class T>
Lines biases_of(const RowNormForward& op) {
  return {op.bias, lines_of(op) == 1 ? 0 : op.lines.bias_stride * parameter_bytes<T>(op.param_dtype)};
}

// A grid in which some blocks, side by side, share out the rows of a line between them, and no block has rows of two:
// so it needs one line of parameters, and its sums are one line's. Lines are counted by y and z, which have 16 bits
// each; there may be a few too many.
inline dim3 grid_of_lines(int64_t blocks_of_line, int64_t lines) {
  const int64_t planes = ceil_div(lines, 65535);
  return dim3(grid_of(blocks_of_line), grid_of(ceil_div(lines, planes)), grid_of(planes));
}
__device__ inline int64_t line_of_block() { return int64_t{blockIdx.z} * gridDim.y + blockIdx.y; }

}  // namespace normext::cuda
