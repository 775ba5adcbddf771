// partial_sums.cuh -- the gradients of a norm's weight and bias: sums over a part of a line's rows from each block,
// then all parts of a line together.
//
//   sum_partials_kernel   lines of more than one part
#pragma once
#include "cuda/elements/launch.cuh"
#include "cuda/elements/parameters.cuh"
#include "cuda/rows/row.cuh"
#include "cuda/rows/row_places.cuh"
#include "ops/row_norm.h"

namespace normext::cuda {

// Sums over a part of a line's rows, [lines * parts of a line, columns] each, of the type that is computed in; null if
// nobody asks for them. Where a line is one part they are the gradients themselves, which may be of a half type.
struct PartialSums {
  void *weight, *bias;
  bool are_half;
};

// Rows that are added up in one register: float32 sums of more would show in the last digits.
constexpr int kRowsOfPart = 128;

// What a thread adds up over the rows of a part.
template <class T, int kVecs>
struct ParameterSums {
  Compute<T> weight[kVecs][kVec<T>] = {}, bias[kVecs][kVec<T>] = {};
};

// A vector of T's columns, or as many kStep apart, into one of the parts.
template <class T, int kStep, class Index, class A>
__device__ void store_part(const PartialSums& partials, void* to, int64_t part, int64_t columns, Index column,
                           Index end, bool aligned, const A (&values)[kVec<T>]) {
  if constexpr (sizeof(T) == 2) {
    if (partials.are_half) return store_row<kStep>(static_cast<T*>(to) + part * columns, column, end, aligned, values);
  }
  store_row<kStep>(static_cast<A*>(to) + part * columns, column, end, aligned, values);
}

// Adds up the parts of each line, in float64 and in order. kSumParts threads go down the parts, 32 columns side by
// side; where a line has fewer parts, several lines share a block. blockIdx.y chooses weight or bias.
constexpr int kSumColumns = 32, kSumParts = 16;

template <class T>
__global__ void __launch_bounds__(kSumColumns* kSumParts)
    sum_partials_kernel(const RowNormBackward op, const PartialSums partials, const int64_t lines, const int64_t parts,
                        const unsigned strips, const int threads_of_line) {
  follow();
  SHARED_ARRAY(double, sums, kSumColumns* kSumParts);
  const void* from = blockIdx.y == 0 ? partials.weight : partials.bias;
  void* to = blockIdx.y == 0 ? op.grad_weight : op.grad_bias;
  if (!from) return;
  const int64_t column = static_cast<int64_t>(blockIdx.x % strips) * kSumColumns + threadIdx.x;
  const int first = threadIdx.y % threads_of_line, lines_of_block = kSumParts / threads_of_line;
  const int64_t line = static_cast<int64_t>(blockIdx.x / strips) * lines_of_block + threadIdx.y / threads_of_line;
  const bool exists = column < op.columns && line < lines;
  double sum = 0;
  if (exists) {
    const auto* const values = static_cast<const Compute<T>*>(from) + line * parts * op.columns + column;
    constexpr int kTile = 8;  // loads on the way
    int64_t part = first;
    for (; part + (kTile - 1) * threads_of_line < parts; part += kTile * threads_of_line) {
      Compute<T> tile[kTile];
#pragma unroll
      for (int t = 0; t < kTile; ++t) tile[t] = values[(part + t * threads_of_line) * op.columns];
#pragma unroll
      for (int t = 0; t < kTile; ++t) sum += tile[t];
    }
    for (; part < parts; part += threads_of_line) sum += values[part * op.columns];
  }
  double* const mine = sums + threadIdx.y * kSumColumns + threadIdx.x;
  *mine = sum;
  __syncthreads();
  if (first != 0 || !exists) return;
  for (int other = 1; other < threads_of_line; ++other) sum += mine[other * kSumColumns];
  store_parameter<T>(to, op.param_dtype, line * op.columns + column, sum);
}

// `vectors`: whether they are stored by vectors, which an array of the caller's may not be aligned for.
template <class T>
PartialSums take_partial_sums(const RowNormBackward& op, Run& run, int64_t parts, bool vectors) {
  if (parts == 1 && (!vectors || is_aligned(op.grad_weight, op.grad_bias)))
    return {op.grad_weight, op.grad_bias, parameter_bytes<T>(op.param_dtype) == 2};
  const int64_t size = lines_of(op) * parts * op.columns;
  void* const weight = op.grad_weight ? run.take<Compute<T>>(size) : nullptr;
  void* const bias = op.grad_bias ? run.take<Compute<T>>(size) : nullptr;
  return {weight, bias, false};
}

template <class T>
void launch_sum_partials(const RowNormBackward& op, Run& run, const PartialSums& partials, int64_t parts) {
  if (partials.weight == op.grad_weight && partials.bias == op.grad_bias) return;
  int threads_of_line = 1;
  while (threads_of_line < kSumParts && threads_of_line < parts) threads_of_line *= 2;
  const int64_t lines = lines_of(op), blocks = ceil_div(lines, kSumParts / threads_of_line);
  const int64_t strips = ceil_div(op.columns, kSumColumns);
  run.launch(sum_partials_kernel<T>, {.grid = dim3(grid_of(strips * blocks), 2), .block = dim3(kSumColumns, kSumParts)},
             op, partials, lines, parts, grid_of(strips), threads_of_line);
}

}  // namespace normext::cuda
