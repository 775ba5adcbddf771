// row_norm_long.cuh -- LayerNorm of rows that do not fit on chip: sums over slices of every row, then all slices of a
// row together, then an elementwise pass that reads the row once more.
//
// How a row is sliced depends on its length alone, so its result depends on nothing but the row.
#pragma once
#include "cuda/channels/planes.cuh"
#include "cuda/elements/launch.cuh"
#include "cuda/elements/parameters.cuh"
#include "cuda/elements/partials.cuh"
#include "cuda/rows/partial_sums.cuh"
#include "cuda/rows/row.cuh"
#include "ops/row_norm.h"

namespace normext::cuda {

constexpr int kLongThreads = 256;

// Where the first of a thread's kVec<T> columns stands among those of its block: vectors side by side, or single
// elements.
template <class T>
__device__ int64_t long_column(int64_t block, bool aligned) {
  return block * kLongThreads * kVec<T> + threadIdx.x * (aligned ? kVec<T> : 1);
}

// ------------------------------------------------------------------------------------------------ forward
// Coefficients of a row: center, rstd, low; the output is ((x - center) * rstd + low) * weight + bias.
template <class T>
__global__ void __launch_bounds__(kFinishThreads, kFinishBlocks)
    finish_rows_forward_kernel(const RowNormForward op, const Partials partials, const Shift<T> shift_of,
                               const StoredCoefficients<Compute<T>, 3> coefficients) {
  follow();
  using A = Compute<T>;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kFinishChannels + threadIdx.x / kWarpSize;
  if (row >= op.rows) return;  // whole warps
  double sums[2];
  partials.sum(row, sums);
  A shift[1];
  shift_of(row, shift);
  __syncwarp();  // all lanes have read the shift before the mean, which it may be, is written
  if (threadIdx.x % kWarpSize != 0) return;
  const auto moments = Moments::of(sums, shift[0], partials.inverse_count);
  const double rstd = reciprocal_root(moments.variance + op.eps);
  const A center = static_cast<A>(moments.mean);
  static_cast<A*>(op.mean)[row] = center;
  static_cast<A*>(op.rstd)[row] = static_cast<A>(rstd);
  coefficients.store(
      row, {center, static_cast<A>(rstd), static_cast<A>((static_cast<double>(center) - moments.mean) * rstd)});
}

template <class T>
__global__ void __launch_bounds__(kLongThreads)
    long_forward_kernel(const RowNormForward op, const int64_t blocks_of_row,
                        const StoredCoefficients<Compute<T>, 3> coefficients, const bool aligned) {
  follow();
  using A = Compute<T>;
  const int64_t block = gridDim.x - 1 - blockIdx.x, row = block / blocks_of_row;  // what was read last, first
  const int64_t column = long_column<T>(block % blocks_of_row, aligned);
  if (column >= op.columns) return;
  A k[3], weight[kVec<T>], bias[kVec<T>], y[kVec<T>];
  coefficients(row, k, false);
  const auto x =
      load_row<kLongThreads>(static_cast<const T*>(op.input) + row * op.columns, column, op.columns, aligned);
  load_parameters<T, kLongThreads>(op.weight, op.param_dtype, column, op.columns, aligned, A(1), weight);
  load_parameters<T, kLongThreads>(op.bias, op.param_dtype, column, op.columns, aligned, A(0), bias);
#pragma unroll
  for (int i = 0; i < kVec<T>; ++i) y[i] = fma(fma(x[i] - k[0], k[1], k[2]), weight[i], bias[i]);
  store_row<kLongThreads>(static_cast<T*>(op.output) + row * op.columns, column, op.columns, aligned, y);
}

// ------------------------------------------------------------------------------------------------ backward
// grad_output * weight, and the input.
template <class T>
struct WeightedInputs {
  const T *grad_output, *input;
  const void* weight;
  DType param_dtype;

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
      out[0][i] = in[0][i] * w[i];
      out[1][i] = in[1][i];
    }
  }
};

// Coefficients of a row: offset, slope, level; see RowCoefficients.
template <class T>
__global__ void __launch_bounds__(kFinishThreads, kFinishBlocks)
    finish_rows_backward_kernel(const RowNormBackward op, const Partials partials,
                                const StoredCoefficients<Compute<T>, 3> coefficients) {
  follow();
  using A = Compute<T>;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kFinishChannels + threadIdx.x / kWarpSize;
  if (row >= op.rows) return;
  double sums[3];
  partials.sum(row, sums);
  if (threadIdx.x % kWarpSize != 0) return;
  const double inverse_n = partials.inverse_count;
  const auto c = CenteredSums::of(sums, inverse_n, true);
  coefficients.store(
      row, {static_cast<A>(c.offset), static_cast<A>(-c.g_xhat * inverse_n), static_cast<A>(sums[0] * inverse_n)});
}

// A block goes down its columns, over its share of the rows: line `blockIdx.x % lines` of the partial sums.
template <class T>
__global__ void __launch_bounds__(kLongThreads)
    long_backward_kernel(const RowNormBackward op, const PartialSums partials, const int64_t lines,
                         const StoredCoefficients<Compute<T>, 3> coefficients, const bool aligned) {
  follow();
  using A = Compute<T>;
  const int64_t line = blockIdx.x % lines;
  const int64_t column = long_column<T>(blockIdx.x / lines, aligned);
  if (column >= op.columns) return;
  A weight[kVec<T>], weight_sum[kVec<T>] = {}, bias_sum[kVec<T>] = {};
  load_parameters<T, kLongThreads>(op.weight, op.param_dtype, column, op.columns, aligned, A(1), weight);
  for (int64_t row = op.rows * line / lines; row < op.rows * (line + 1) / lines; ++row) {
    A k[3], dx[kVec<T>];
    coefficients(row, k, false);
    const A mean = static_cast<const A*>(op.mean)[row], rstd = static_cast<const A*>(op.rstd)[row];
    const auto dy =
        load_row<kLongThreads>(static_cast<const T*>(op.grad_output) + row * op.columns, column, op.columns, aligned);
    const auto x =
        load_row<kLongThreads>(static_cast<const T*>(op.input) + row * op.columns, column, op.columns, aligned);
#pragma unroll
    for (int i = 0; i < kVec<T>; ++i) {
      const A xhat = (x[i] - mean) * rstd - k[0];
      dx[i] = fma(xhat, k[1], dy[i] * weight[i] - k[2]) * rstd;
      weight_sum[i] = fma(dy[i], xhat, weight_sum[i]);
      bias_sum[i] += dy[i];
    }
    if (op.grad_input)
      store_row<kLongThreads>(static_cast<T*>(op.grad_input) + row * op.columns, column, op.columns, aligned, dx);
  }
  if (partials.weight)
    store_line<T, kLongThreads>(partials.weight, line, op.columns, column, op.columns, aligned, weight_sum);
  if (partials.bias)
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

template <class T>
void long_layer_norm_forward(const RowNormForward& op, Run& run, bool aligned) {
  using A = Compute<T>;
  const unsigned slices = long_row_slices<T>(op.columns);
  double* const sums = run.take<double>(op.rows * slices * MomentSums<A>::kSums);
  const StoredCoefficients<A, 3> coefficients{run.take<A>(op.rows * 3)};
  Shift<T> shift{static_cast<const T*>(op.input), nullptr, op.columns};
  // float64 has nothing wider to be summed in: once more, about the mean.
  for (int pass = 0; pass < (std::is_same_v<T, double> ? 2 : 1); ++pass) {
    launch_sum_rows<T, MomentSums<A>>(run, op.rows, op.columns, Inputs<T, 1>{{static_cast<const T*>(op.input)}}, shift,
                                      aligned, sums);
    run.launch(finish_rows_forward_kernel<T>,
               {.grid = grid_of(ceil_div(op.rows, kFinishChannels)), .block = kFinishThreads}, op,
               Partials{sums, op.rows, 1, slices, 1 / static_cast<double>(op.columns)}, shift, coefficients);
    shift.mean = static_cast<const A*>(op.mean);
  }
  const int64_t blocks = ceil_div(op.columns, kLongThreads * kVec<T>);
  run.launch(long_forward_kernel<T>, {.grid = grid_of(op.rows * blocks), .block = kLongThreads}, op, blocks,
             coefficients, aligned);
}

template <class T>
void long_layer_norm_backward(const RowNormBackward& op, Run& run, bool aligned) {
  using A = Compute<T>;
  const unsigned slices = long_row_slices<T>(op.columns);
  double* const sums = run.take<double>(op.rows * slices * GradientSums<A>::kSums);
  const StoredCoefficients<A, 3> coefficients{run.take<A>(op.rows * 3)};
  const WeightedInputs<T> inputs{static_cast<const T*>(op.grad_output), static_cast<const T*>(op.input), op.weight,
                                 op.param_dtype};
  const SavedStatistics<A> statistics{static_cast<const A*>(op.mean), static_cast<const A*>(op.rstd)};
  launch_sum_rows<T, GradientSums<A>>(run, op.rows, op.columns, inputs, statistics, aligned, sums);
  run.launch(finish_rows_backward_kernel<T>,
             {.grid = grid_of(ceil_div(op.rows, kFinishChannels)), .block = kFinishThreads}, op,
             Partials{sums, op.rows, 1, slices, 1 / static_cast<double>(op.columns)}, coefficients);
  // Rows are split until there are two blocks for every SM, and no line is the sum of too many.
  const int64_t strips = ceil_div(op.columns, kLongThreads * kVec<T>);
  const int64_t lines =
      std::min(op.rows, std::max(ceil_div(2 * run.device.sm_count, strips), ceil_div(op.rows, kRowsOfLine)));
  const PartialSums partials = take_partial_sums<T>(op, run, lines);
  run.launch(long_backward_kernel<T>, {.grid = grid_of(strips * lines), .block = kLongThreads}, op, partials, lines,
             coefficients, aligned);
  launch_sum_partials<T>(op, run, partials, lines);
}

}  // namespace normext::cuda
