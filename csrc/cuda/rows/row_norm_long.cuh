// row_norm_long.cuh -- the norms of rows that do not fit on chip: sums over slices of every row, then all slices of a
// row together, then an elementwise pass that reads the row once more.
//
//   forward:  add_rows_kernel, if there is a residual: what follows reads the sum
//             sum_rows_kernel, finish_rows_forward_kernel; both again for a mean in float64; long_forward_kernel
//   backward: sum_rows_kernel, finish_rows_backward_kernel, long_backward_kernel; sum_partials_kernel, if a gradient
//             of a parameter is asked for
//
// T is the input's type, X that of what is normalized: the input's, or a sum's. How a row is sliced depends on its
// length alone, so its result depends on nothing but the row.
#pragma once
#include "cuda/elements/launch.cuh"
#include "cuda/elements/parameters.cuh"
#include "cuda/elements/partials.cuh"
#include "cuda/elements/plane_walk.cuh"
#include "cuda/elements/reduce.cuh"
#include "cuda/rows/partial_sums.cuh"
#include "cuda/rows/row.cuh"
#include "cuda/rows/row_places.cuh"
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

// Sums over a slice of a row. Unlike those of planes, rows need not lie one behind the other: inputs.of_row() says
// where to begin.
template <class X, class Sum, int kSize, class In, class Start>
__global__ void __launch_bounds__(kPlaneThreads, 2)
    sum_rows_kernel(const PlaneSlices slices, const In inputs, const Start start, double* partials) {
  follow();
  using Group = GroupSum<double, Sum::kSums, kPlaneThreads, kPlaneThreads, false>;
  SHARED_ARRAY(double, exchange, Group::kSharedValues);
  const unsigned row = blockIdx.x / slices.slices, slice = blockIdx.x % slices.slices;
  Compute<X> k[Sum::kCoefficients];
  start(row, k);
  Sum sum;
  sum.start(k);
  sum_planes<X>(PlaneWalk<kSize, kPlaneThreads>(slices, 0, slice), inputs.of_row(row), sum, [](const auto&) {});
  double totals[Sum::kSums];
  sum.totals(k, totals);
  Group group_sum(exchange);
  group_sum(totals);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < Sum::kSums; ++i) partials[blockIdx.x * int64_t{Sum::kSums} + i] = totals[i];
  }
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
// sum = input + residual, as both come from memory in strides.
template <class T, class S>
__global__ void __launch_bounds__(kLongThreads)
    add_rows_kernel(const RowNormForward op, const RowPlaces input, const RowPlaces residual,
                    const int64_t blocks_of_row, const bool aligned) {
  const int64_t row = blockIdx.x / blocks_of_row;
  const int64_t column = long_column<T>(blockIdx.x % blocks_of_row, aligned);
  if (column >= op.columns) return;
  const auto x =
      load_elements<T, kLongThreads>(static_cast<const T*>(op.input) + input[row], column, op.columns, aligned);
  const auto r =
      load_elements<T, kLongThreads>(static_cast<const S*>(op.residual) + residual[row], column, op.columns, aligned);
  Compute<T> sum[kVec<T>];
#pragma unroll
  for (int i = 0; i < kVec<T>; ++i) sum[i] = x[i] + r[i];
  store_row<kLongThreads>(static_cast<S*>(op.sum) + row * op.columns, column, op.columns, aligned, sum);
}

// What is summed: the rows of one array.
template <class X>
struct RowInput {
  const X* input;
  RowPlaces places;

  __device__ Inputs<X, 1> of_row(int64_t row) const { return {{input + places[row]}}; }
};

template <class Statistics, class X>
using NormalizationOf = typename Statistics::template Normalization<Compute<X>>;

template <class X, class Statistics, class Start>
__global__ void __launch_bounds__(kFinishThreads, kFinishBlocks)
    finish_rows_forward_kernel(const RowNormForward op, const Partials partials, const Start start_of,
                               NormalizationOf<Statistics, X>* const normalizations) {
  follow();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kFinishChannels + threadIdx.x / kWarpSize;
  if (row >= op.rows) return;  // whole warps
  double sums[Statistics::kForwardSums];
  partials.sum(row, sums);
  Compute<X> start[1];
  start_of(row, start);
  __syncwarp();  // all lanes have read what the sums are taken about before the mean, which it may be, is written
  if (threadIdx.x % kWarpSize != 0) return;
  normalizations[row] = Statistics::finish(op, row, sums, start[0], partials.inverse_count);
}

template <class T, class X, class Statistics>
__global__ void __launch_bounds__(kLongThreads)
    long_forward_kernel(const RowNormForward op, const RowPlaces places, const Lines weights, const Lines biases,
                        const int64_t blocks_of_row, const NormalizationOf<Statistics, X>* const normalizations,
                        const Compute<T> weight_offset, const bool aligned) {
  follow();
  using A = Compute<T>;
  const int64_t block = gridDim.x - 1 - blockIdx.x, row = block / blocks_of_row;  // what was read last, first
  const int64_t column = long_column<T>(block % blocks_of_row, aligned);
  if (column >= op.columns) return;
  const int64_t line = row / op.lines.rows_per_line;
  A weight[kVec<T>], bias[kVec<T>], y[kVec<T>];
  const auto normalization = normalizations[row];
  const auto x =
      load_elements<T, kLongThreads>(static_cast<const X*>(op.input) + places[row], column, op.columns, aligned);
  load_weight<T>(weights[line], op.param_dtype, column, op.columns, aligned, weight_offset, weight);
  load_parameters<T, kLongThreads>(biases[line], op.param_dtype, column, op.columns, aligned, A(0), bias);
#pragma unroll
  for (int i = 0; i < kVec<T>; ++i) y[i] = fma(normalization(x[i]), weight[i], bias[i]);
  store_row<kLongThreads>(static_cast<T*>(op.output) + row * op.columns, column, op.columns, aligned, y);
}

// ------------------------------------------------------------------------------------------------ backward
// grad_output * (weight + weight_offset), and x, of one row.
template <class T, class X>
struct WeightedInputs {
  const T* grad_output;
  const X* input;
  const void* weight;
  DType param_dtype;
  Compute<T> weight_offset;

  template <class V>
  __device__ void fetch(int64_t offset, V (&out)[2]) const {
    if constexpr (std::is_same_v<T, X>)
      out[0] = V::load(grad_output + offset);
    else
      out[0] = V{cuda::widen(__ldg(grad_output + offset))};  // a tile is of X, element by element
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

template <class T, class X>
struct WeightedRows {
  const T* grad_output;
  const X* input;
  RowPlaces grad_output_places, input_places;
  Lines weights;
  int64_t rows_per_line;
  DType param_dtype;
  Compute<T> weight_offset;

  __device__ WeightedInputs<T, X> of_row(int64_t row) const {
    return {grad_output + grad_output_places[row], input + input_places[row], weights[row / rows_per_line], param_dtype,
            weight_offset};
  }
};

template <class Statistics, class X>
using GradientOf = typename Statistics::template Gradient<Compute<X>>;

template <class X, class Statistics>
__global__ void __launch_bounds__(kFinishThreads, kFinishBlocks)
    finish_rows_backward_kernel(const RowNormBackward op, const Partials partials,
                                GradientOf<Statistics, X>* const gradients) {
  follow();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kFinishChannels + threadIdx.x / kWarpSize;
  if (row >= op.rows) return;
  double sums[Statistics::kBackwardSums];
  partials.sum(row, sums);
  if (threadIdx.x % kWarpSize != 0) return;
  gradients[row] = Statistics::template finish<Compute<X>>(sums, partials.inverse_count);
}

// A block goes down its columns, over its share of a line's rows: part `blockIdx.x % all_parts` of the partial sums.
template <class T, class X, class Statistics>
__global__ void __launch_bounds__(kLongThreads)
    long_backward_kernel(const RowNormBackward op, const RowPlaces grad_outputs, const RowPlaces inputs,
                         const Lines weights, const PartialSums partials, const int64_t all_parts, const int64_t parts,
                         const GradientOf<Statistics, X>* const gradients, const Compute<T> weight_offset,
                         const bool aligned) {
  follow();
  using A = Compute<T>;
  const int64_t index = blockIdx.x % all_parts, line = index / parts, part = index % parts;
  const int64_t column = long_column<T>(blockIdx.x / all_parts, aligned);
  if (column >= op.columns) return;
  A weight[kVec<T>], weight_sum[kVec<T>] = {}, bias_sum[kVec<T>] = {};
  load_weight<T>(weights[line], op.param_dtype, column, op.columns, aligned, weight_offset, weight);
  const int64_t rows = op.lines.rows_per_line, first = line * rows;
  for (int64_t row = first + rows * part / parts; row < first + rows * (part + 1) / parts; ++row) {
    A dx[kVec<T>], sum[kVec<T>];
    const auto gradient = gradients[row];
    const auto saved = Statistics::template Saved<A>::load(op, row);
    const auto load = [&]<class U>(const U* from) {
      return load_elements<T, kLongThreads>(from, column, op.columns, aligned);
    };
    const auto dy = load(static_cast<const T*>(op.grad_output) + grad_outputs[row]);
    const auto x = load(static_cast<const X*>(op.input) + inputs[row]);
    load_parameters<kLongThreads>(op.grad_sum ? static_cast<const X*>(op.grad_sum) + row * op.columns : nullptr, column,
                                  op.columns, aligned, A(0), sum);
#pragma unroll
    for (int i = 0; i < kVec<T>; ++i) {
      const A xhat = gradient.corrected(saved.xhat(x[i]));
      dx[i] = gradient(dy[i] * weight[i], xhat) * saved.rstd + sum[i];
      weight_sum[i] = fma(dy[i], xhat, weight_sum[i]);
      bias_sum[i] += dy[i];
    }
    const auto store = [&]<class U>(U* to) {
      store_row<kLongThreads>(to + row * op.columns, column, op.columns, aligned, dx);
    };
    if (op.grad_input) store(static_cast<T*>(op.grad_input));
    if constexpr (!std::is_same_v<T, X>) {
      if (op.grad_residual) store(static_cast<X*>(op.grad_residual));
    }
  }
  const auto store = [&](void* to, const A(&sum)[kVec<T>]) {
    if (to) store_part<T, kLongThreads>(partials, to, index, op.columns, column, op.columns, aligned, sum);
  };
  store(partials.weight, weight_sum);
  store(partials.bias, bias_sum);
}

// ------------------------------------------------------------------------------------------------ launch configuration
// 16 tiles of vectors for each thread.
template <class X>
unsigned long_row_slices(int64_t columns) {
  return static_cast<unsigned>(ceil_div(columns, int64_t{64} * kPlaneThreads * kVec<X>));
}

// Sums over all slices of all rows; kSize elements at a time.
template <class X, class Sum, int kSize, class In, class Start>
void launch_sum_rows(Run& run, int64_t rows, int64_t columns, const In& inputs, const Start& start, double* partials) {
  const unsigned slices = long_row_slices<X>(columns);
  run.launch(sum_rows_kernel<X, Sum, kSize, In, Start>,
             {.grid = grid_of(rows * slices), .block = kPlaneThreads, .alone = true},
             PlaneSlices({1, rows, columns}, kSize, kPlaneThreads, slices), inputs, start, partials);
}

template <class T, class S>
void launch_add_rows(const RowNormForward& op, Run& run, bool aligned) {
  const int64_t blocks = ceil_div(op.columns, kLongThreads * kVec<T>);
  run.launch(add_rows_kernel<T, S>, {.grid = grid_of(op.rows * blocks), .block = kLongThreads}, op,
             RowPlaces(op.input_strides, op.rows), RowPlaces(op.residual_strides, op.rows), blocks, aligned);
}

template <class T, class X, class Statistics>
void long_row_norm_forward(const RowNormForward& op, Run& run, bool aligned) {
  using A = Compute<T>;
  using Sum = typename Statistics::template LongSums<A>;
  const RowPlaces places(op.input_strides, op.rows);
  const unsigned slices = long_row_slices<X>(op.columns);
  double* const sums = run.take<double>(op.rows * slices * Sum::kSums);
  auto* const normalizations = run.take<NormalizationOf<Statistics, X>>(op.rows);
  const RowInput<X> inputs{static_cast<const X*>(op.input), places};
  for (int pass = 0; pass < Statistics::template kPasses<A>; ++pass) {
    const auto start = Statistics::template start<X>(op, pass);
    if (aligned)
      launch_sum_rows<X, Sum, kVec<X>>(run, op.rows, op.columns, inputs, start, sums);
    else
      launch_sum_rows<X, Sum, 1>(run, op.rows, op.columns, inputs, start, sums);
    run.launch(finish_rows_forward_kernel<X, Statistics, std::remove_const_t<decltype(start)>>,
               {.grid = grid_of(ceil_div(op.rows, kFinishChannels)), .block = kFinishThreads}, op,
               Partials{sums, op.rows, 1, slices, 1 / static_cast<double>(op.columns)}, start, normalizations);
  }
  const int64_t blocks = ceil_div(op.columns, kLongThreads * kVec<T>);
  const Lines weights = weights_of<T>(op), biases = biases_of<T>(op);
  run.launch(long_forward_kernel<T, X, Statistics>, {.grid = grid_of(op.rows * blocks), .block = kLongThreads}, op,
             places, weights, biases, blocks, normalizations, static_cast<A>(op.weight_offset),
             aligned && weights.are_aligned() && biases.are_aligned());
}

template <class T, class X, class Statistics>
void long_row_norm_backward(const RowNormBackward& op, Run& run, bool aligned) {
  using A = Compute<T>;
  using Sum = typename Statistics::template LongGradientSums<A>;
  const A weight_offset = static_cast<A>(op.weight_offset);
  const RowPlaces grad_outputs(op.grad_output_strides, op.rows), places(op.input_strides, op.rows);
  const Lines weights = weights_of<T>(op);
  aligned = aligned && weights.are_aligned();
  const unsigned slices = long_row_slices<X>(op.columns);
  double* const sums = run.take<double>(op.rows * slices * Sum::kSums);
  auto* const gradients = run.take<GradientOf<Statistics, X>>(op.rows);
  const WeightedRows<T, X> inputs{static_cast<const T*>(op.grad_output),
                                  static_cast<const X*>(op.input),
                                  grad_outputs,
                                  places,
                                  weights,
                                  op.lines.rows_per_line,
                                  op.param_dtype,
                                  weight_offset};
  const auto start = Statistics::template start<A>(op);
  const auto launch_sums = [&]<int kSize>() {
    launch_sum_rows<X, Sum, kSize>(run, op.rows, op.columns, inputs, start, sums);
  };
  if constexpr (std::is_same_v<T, X>) {  // arrays of two types have no vectors of as many elements
    aligned ? launch_sums.template operator()<kVec<X>>() : launch_sums.template operator()<1>();
  } else {
    launch_sums.template operator()<1>();
  }
  run.launch(finish_rows_backward_kernel<X, Statistics>,
             {.grid = grid_of(ceil_div(op.rows, kFinishChannels)), .block = kFinishThreads}, op,
             Partials{sums, op.rows, 1, slices, 1 / static_cast<double>(op.columns)}, gradients);
  // Rows are split until there are two blocks for every SM, and no part is the sum of too many.
  const int64_t strips = ceil_div(op.columns, kLongThreads * kVec<T>), lines = lines_of(op);
  const int64_t rows = op.lines.rows_per_line;
  const int64_t parts =
      std::min(rows, std::max(ceil_div(2 * run.device.sm_count, strips * lines), ceil_div(rows, kRowsOfPart)));
  const PartialSums partials = take_partial_sums<T>(op, run, parts, aligned);
  run.launch(long_backward_kernel<T, X, Statistics>, {.grid = grid_of(strips * lines * parts), .block = kLongThreads},
             op, grad_outputs, places, weights, partials, lines * parts, parts, gradients, weight_offset, aligned);
  launch_sum_partials<T>(op, run, partials, parts);
}

// For either statistics.
template <class T, class X>
void long_row_norm_forward(const RowNormForward& op, Run& run, bool aligned) {
  with_statistics(op.statistics, [&]<class Statistics>(Type<Statistics>) {
    long_row_norm_forward<T, X, Statistics>(op, run, aligned);
  });
}
template <class T, class X>
void long_row_norm_backward(const RowNormBackward& op, Run& run, bool aligned) {
  with_statistics(op.statistics, [&]<class Statistics>(Type<Statistics>) {
    long_row_norm_backward<T, X, Statistics>(op, run, aligned);
  });
}

}  // namespace normext::cuda
