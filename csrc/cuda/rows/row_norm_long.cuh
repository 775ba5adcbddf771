// row_norm_long.cuh -- the norms of rows that do not fit on chip: sums over slices of every row, then all slices of a
// row together, then an elementwise pass that reads the row once more.
//
//   forward:  sum_planes_kernel, finish_rows_forward_kernel; both again for a mean in float64; long_forward_kernel
//   backward: sum_planes_kernel, finish_rows_backward_kernel, long_backward_kernel; sum_partials_kernel, if a gradient
//             of a parameter is asked for
//
// How a row is sliced depends on its length alone, so its result depends on nothing but the row.
#pragma once
#include "cuda/channels/planes.cuh"
#include "cuda/elements/launch.cuh"
#include "cuda/elements/parameters.cuh"
#include "cuda/elements/partials.cuh"
#include "cuda/rows/partial_sums.cuh"
#include "cuda/rows/row.cuh"
#include "cuda/rows/row_statistics.cuh"
#include "ops/row_norm.h"

namespace normext::cuda {

constexpr int kLongThreads = 256;

// Where the first of a thread's kVec<T> columns stands among those of its block: vectors side by side, or single
// elements.
template <class T>
__device__ int64_t long_column(int64_t block, bool aligned) {
  return block * kLongThreads * kVec<T> + threadIdx.x * (aligned ? kVec<T> : 1);
}

// The weight of kVec<T> columns.
template <class T>
__device__ void load_weight(const void* weight, DType dtype, int64_t column, int64_t end, bool aligned,
                            Compute<T> offset, Compute<T> (&out)[kVec<T>]) {
  load_parameters<T, kLongThreads>(weight, dtype, column, end, aligned, Compute<T>(1), out);
#pragma unroll
  for (int i = 0; i < kVec<T>; ++i) out[i] += offset;
}

// ------------------------------------------------------------------------------------------------ forward
template <class Statistics, class T>
using NormalizationOf = typename Statistics::template Normalization<Compute<T>>;

template <class T, class Statistics, class Start>
__global__ void __launch_bounds__(kFinishThreads, kFinishBlocks)
    finish_rows_forward_kernel(const RowNormForward op, const Partials partials, const Start start_of,
                               NormalizationOf<Statistics, T>* const normalizations) {
  follow();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kFinishChannels + threadIdx.x / kWarpSize;
  if (row >= op.rows) return;  // whole warps
  double sums[Statistics::kForwardSums];
  partials.sum(row, sums);
  Compute<T> start[1];
  start_of(row, start);
  __syncwarp();  // all lanes have read what the sums are taken about before the mean, which it may be, is written
  if (threadIdx.x % kWarpSize != 0) return;
  normalizations[row] = Statistics::finish(op, row, sums, start[0], partials.inverse_count);
}

template <class T, class Statistics>
__global__ void __launch_bounds__(kLongThreads)
    long_forward_kernel(const RowNormForward op, const int64_t blocks_of_row,
                        const NormalizationOf<Statistics, T>* const normalizations, const Compute<T> weight_offset,
                        const bool aligned) {
  follow();
  using A = Compute<T>;
  const int64_t block = gridDim.x - 1 - blockIdx.x, row = block / blocks_of_row;  // what was read last, first
  const int64_t column = long_column<T>(block % blocks_of_row, aligned);
  if (column >= op.columns) return;
  A weight_bias[Statistics::kParameters][kVec<T>], y[kVec<T>];
  const auto normalization = normalizations[row];
  const auto x =
      load_row<kLongThreads>(static_cast<const T*>(op.input) + row * op.columns, column, op.columns, aligned);
  load_weight<T>(op.weight, op.param_dtype, column, op.columns, aligned, weight_offset, weight_bias[0]);
  if constexpr (Statistics::kParameters == 2)
    load_parameters<T, kLongThreads>(op.bias, op.param_dtype, column, op.columns, aligned, A(0), weight_bias[1]);
#pragma unroll
  for (int i = 0; i < kVec<T>; ++i) y[i] = Statistics::affine(normalization(x[i]), weight_bias, i);
  store_row<kLongThreads>(static_cast<T*>(op.output) + row * op.columns, column, op.columns, aligned, y);
}

// ------------------------------------------------------------------------------------------------ backward
// grad_output * (weight + weight_offset), and the input.
template <class T>
struct WeightedInputs {
  const T *grad_output, *input;
  const void* weight;
  DType param_dtype;
  Compute<T> weight_offset;

  template <class V>
  __device__ void fetch(int64_t offset, V (&out)[2]) const {
    out[0] = V::load(grad_output + offset);
    out[1] = V::load(input + offset);
  }
  template <class V, int kSize>
  __device__ void widen(const V (&in)[2], int64_t column, Compute<T> (&out)[2][kSize]) const {
    Compute<T> w[kSize];
    if constexpr (kSize == 1)
      w[0] = static_cast<Compute<T>>(parameter<T>(weight, param_dtype, column, 1));
    else
      load_parameters<T>(weight, param_dtype, column, column + kSize, true, Compute<T>(1), w);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      out[0][i] = in[0][i] * (w[i] + weight_offset);
      out[1][i] = in[1][i];
    }
  }
};

template <class Statistics, class T>
using GradientOf = typename Statistics::template Gradient<Compute<T>>;

template <class T, class Statistics>
__global__ void __launch_bounds__(kFinishThreads, kFinishBlocks)
    finish_rows_backward_kernel(const RowNormBackward op, const Partials partials,
                                GradientOf<Statistics, T>* const gradients) {
  follow();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kFinishChannels + threadIdx.x / kWarpSize;
  if (row >= op.rows) return;
  double sums[Statistics::kBackwardSums];
  partials.sum(row, sums);
  if (threadIdx.x % kWarpSize != 0) return;
  gradients[row] = Statistics::template finish<Compute<T>>(sums, partials.inverse_count);
}

// A block goes down its columns, over its share of the rows: line `blockIdx.x % lines` of the partial sums.
template <class T, class Statistics>
__global__ void __launch_bounds__(kLongThreads)
    long_backward_kernel(const RowNormBackward op, const PartialSums partials, const int64_t lines,
                         const GradientOf<Statistics, T>* const gradients, const Compute<T> weight_offset,
                         const bool aligned) {
  follow();
  using A = Compute<T>;
  constexpr bool kHasBias = Statistics::kParameters == 2;
  const int64_t line = blockIdx.x % lines;
  const int64_t column = long_column<T>(blockIdx.x / lines, aligned);
  if (column >= op.columns) return;
  A weight[kVec<T>], weight_sum[kVec<T>] = {}, bias_sum[kVec<T>] = {};
  load_weight<T>(op.weight, op.param_dtype, column, op.columns, aligned, weight_offset, weight);
  for (int64_t row = op.rows * line / lines; row < op.rows * (line + 1) / lines; ++row) {
    A dx[kVec<T>];
    const auto gradient = gradients[row];
    const auto saved = Statistics::template Saved<A>::load(op, row);
    const auto dy =
        load_row<kLongThreads>(static_cast<const T*>(op.grad_output) + row * op.columns, column, op.columns, aligned);
    const auto x =
        load_row<kLongThreads>(static_cast<const T*>(op.input) + row * op.columns, column, op.columns, aligned);
#pragma unroll
    for (int i = 0; i < kVec<T>; ++i) {
      const A xhat = gradient.corrected(saved.xhat(x[i]));
      dx[i] = gradient(dy[i] * weight[i], xhat) * saved.rstd;
      weight_sum[i] = fma(dy[i], xhat, weight_sum[i]);
      if constexpr (kHasBias) bias_sum[i] += dy[i];
    }
    if (op.grad_input)
      store_row<kLongThreads>(static_cast<T*>(op.grad_input) + row * op.columns, column, op.columns, aligned, dx);
  }
  if (partials.weight)
    store_line<T, kLongThreads>(partials.weight, line, op.columns, column, op.columns, aligned, weight_sum);
  if (kHasBias && partials.bias)
    store_line<T, kLongThreads>(partials.bias, line, op.columns, column, op.columns, aligned, bias_sum);
}

// ------------------------------------------------------------------------------------------------ launch configuration
// 16 tiles of vectors for each thread.
template <class T>
unsigned long_row_slices(int64_t columns) {
  return static_cast<unsigned>(ceil_div(columns, int64_t{64} * kPlaneThreads * kVec<T>));
}

// Sums over all slices of all rows.
template <class T, class Sum, class In, class Start>
void launch_sum_rows(Run& run, int64_t rows, int64_t columns, const In& inputs, const Start& start, bool aligned,
                     double* partials) {
  const unsigned slices = long_row_slices<T>(columns);
  const auto launch = [&]<int kSize>() {
    run.launch(sum_planes_kernel<T, Sum, kSize, In, Start>, {.grid = grid_of(rows * slices), .block = kPlaneThreads},
               PlaneSlices({1, rows, columns}, kSize, kPlaneThreads, slices), inputs, start, partials);
  };
  if (aligned)
    launch.template operator()<kVec<T>>();
  else
    launch.template operator()<1>();
}

template <class T, class Statistics>
void long_row_norm_forward(const RowNormForward& op, Run& run, bool aligned) {
  using A = Compute<T>;
  using Sum = typename Statistics::template LongSums<A>;
  const unsigned slices = long_row_slices<T>(op.columns);
  double* const sums = run.take<double>(op.rows * slices * Sum::kSums);
  auto* const normalizations = run.take<NormalizationOf<Statistics, T>>(op.rows);
  const Inputs<T, 1> inputs{{static_cast<const T*>(op.input)}};
  for (int pass = 0; pass < Statistics::template kPasses<A>; ++pass) {
    const auto start = Statistics::template start<T>(op, pass);
    launch_sum_rows<T, Sum>(run, op.rows, op.columns, inputs, start, aligned, sums);
    run.launch(finish_rows_forward_kernel<T, Statistics, std::remove_const_t<decltype(start)>>,
               {.grid = grid_of(ceil_div(op.rows, kFinishChannels)), .block = kFinishThreads}, op,
               Partials{sums, op.rows, 1, slices, 1 / static_cast<double>(op.columns)}, start, normalizations);
  }
  const int64_t blocks = ceil_div(op.columns, kLongThreads * kVec<T>);
  run.launch(long_forward_kernel<T, Statistics>, {.grid = grid_of(op.rows * blocks), .block = kLongThreads}, op, blocks,
             normalizations, static_cast<A>(op.weight_offset), aligned);
}

template <class T, class Statistics>
void long_row_norm_backward(const RowNormBackward& op, Run& run, bool aligned) {
  using A = Compute<T>;
  using Sum = typename Statistics::template LongGradientSums<A>;
  const A weight_offset = static_cast<A>(op.weight_offset);
  const unsigned slices = long_row_slices<T>(op.columns);
  double* const sums = run.take<double>(op.rows * slices * Sum::kSums);
  auto* const gradients = run.take<GradientOf<Statistics, T>>(op.rows);
  const WeightedInputs<T> inputs{static_cast<const T*>(op.grad_output), static_cast<const T*>(op.input), op.weight,
                                 op.param_dtype, weight_offset};
  launch_sum_rows<T, Sum>(run, op.rows, op.columns, inputs, Statistics::template start<A>(op), aligned, sums);
  run.launch(finish_rows_backward_kernel<T, Statistics>,
             {.grid = grid_of(ceil_div(op.rows, kFinishChannels)), .block = kFinishThreads}, op,
             Partials{sums, op.rows, 1, slices, 1 / static_cast<double>(op.columns)}, gradients);
  // Rows are split until there are two blocks for every SM, and no line is the sum of too many.
  const int64_t strips = ceil_div(op.columns, kLongThreads * kVec<T>);
  const int64_t lines =
      std::min(op.rows, std::max(ceil_div(2 * run.device.sm_count, strips), ceil_div(op.rows, kRowsOfLine)));
  const PartialSums partials = take_partial_sums<T>(op, run, lines);
  run.launch(long_backward_kernel<T, Statistics>, {.grid = grid_of(strips * lines), .block = kLongThreads}, op,
             partials, lines, gradients, weight_offset, aligned);
  launch_sum_partials<T>(op, run, partials, lines);
}

}  // namespace normext::cuda
