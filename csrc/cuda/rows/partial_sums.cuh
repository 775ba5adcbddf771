// partial_sums.cuh -- the gradients of a norm's weight and bias: a line of sums from each block, then all lines
// together.
#pragma once
#include "cuda/elements/launch.cuh"
#include "cuda/elements/parameters.cuh"
#include "cuda/rows/row.cuh"
#include "ops/row_norm.h"

namespace normext::cuda {

// [lines, columns] each; null if nobody asks for them.
struct PartialSums {
  void *weight, *bias;
};

// Rows that are added up in one register: float32 sums of more would show in the last digits.
constexpr int kRowsOfLine = 128;

// A vector of T's columns, or as many kStep apart, into one of the lines.
template <class T, int kStep, class Index, class A>
__device__ void store_line(void* partials, int64_t line, int64_t columns, Index column, Index end, bool aligned,
                           const A (&values)[kVec<T>]) {
#pragma unroll
  for (int i = 0; i < kVec<T>; i += kVec<A>) {
    A piece[kVec<A>];
#pragma unroll
    for (int k = 0; k < kVec<A>; ++k) piece[k] = values[i + k];
    store_row<kStep>(static_cast<A*>(partials) + line * columns, column + i * (aligned ? 1 : kStep), end, aligned,
                     piece);
  }
}

// Adds up the lines, in float64 and in order. blockIdx.y chooses weight or bias.
constexpr int kSumColumns = 32, kSumLines = 16;

template <class T>
__global__ void __launch_bounds__(kSumColumns* kSumLines)
    sum_partials_kernel(const RowNormBackward op, const PartialSums partials, const int64_t lines) {
  follow();
  SHARED_ARRAY(double, sums, kSumColumns* kSumLines);
  const void* from = blockIdx.y == 0 ? partials.weight : partials.bias;
  void* to = blockIdx.y == 0 ? op.grad_weight : op.grad_bias;
  if (!from) return;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kSumColumns + threadIdx.x;
  double sum = 0;
  if (column < op.columns) {
    const auto* const values = static_cast<const Compute<T>*>(from) + column;
    constexpr int kTile = 8;  // loads on the way
    int64_t line = threadIdx.y;
    for (; line + (kTile - 1) * kSumLines < lines; line += kTile * kSumLines) {
      Compute<T> tile[kTile];
#pragma unroll
      for (int t = 0; t < kTile; ++t) tile[t] = values[(line + t * kSumLines) * op.columns];
#pragma unroll
      for (int t = 0; t < kTile; ++t) sum += tile[t];
    }
    for (; line < lines; line += kSumLines) sum += values[line * op.columns];
  }
  sums[threadIdx.y * kSumColumns + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= op.columns) return;
  for (int line = 1; line < kSumLines; ++line) sum += sums[line * kSumColumns + threadIdx.x];
  store_parameter<T>(to, op.param_dtype, column, sum);
}

template <class T>
PartialSums take_partial_sums(const RowNormBackward& op, Run& run, int64_t lines) {
  const auto take = [&](const void* gradient) { return gradient ? run.take<Compute<T>>(lines * op.columns) : nullptr; };
  return {take(op.grad_weight), take(op.grad_bias)};
}

template <class T>
void launch_sum_partials(const RowNormBackward& op, Run& run, const PartialSums& partials, int64_t lines) {
  if (!op.grad_weight && !op.grad_bias) return;
  run.launch(sum_partials_kernel<T>,
             {.grid = dim3(grid_of(ceil_div(op.columns, kSumColumns)), 2), .block = dim3(kSumColumns, kSumLines)}, op,
             partials, lines);
}

}  // namespace normext::cuda
