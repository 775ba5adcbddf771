// row_norm_backward.cuh -- the norms of rows backward: one pass over input and grad_output gives grad_input, and for
// each block its part of grad_weight and grad_bias; a second, small kernel adds the parts up.
//
//   row_norm_backward_kernel   rows of up to 1024 vectors of 16 bytes, and of up to 2048 by clusters of two blocks,
//                              where the GPU has them
//   sum_partials_kernel        behind it, if a gradient of a parameter is asked for: see partial_sums.cuh
//   row_norm_long.cuh          longer rows
//
// Blocks are as many as run at once, and each goes through its share of the rows, the next row's vectors on their way
// while the current one is computed. What a thread adds up for the weight and the bias stays in its registers, since
// its columns are the same in every row.
#pragma once
#include "cuda/elements/launch.cuh"
#include "cuda/elements/reduce.cuh"
#include "cuda/rows/partial_sums.cuh"
#include "cuda/rows/row.cuh"
#include "cuda/rows/row_launches.cuh"
#include "cuda/rows/row_norm_long.cuh"
#include "cuda/rows/row_statistics.cuh"
#include "cuda/rows/shared_parameters.cuh"
#include "ops/row_norm.h"

namespace normext::cuda {

// A row's inputs as they come from memory. An absent row is zeros throughout, and adds nothing.
template <class T, class Statistics, int kVecs>
struct RowInputs {
  Pack<T> grad_output[kVecs], input[kVecs];
  typename Statistics::template Saved<Compute<T>> saved;
};

// values, summed over the rows of a block in a fixed order, into a line of `partials`.
template <class T, int kLanes, int kVecs, class Part, class A>
__device__ void store_partials(void* partials, int64_t line, int64_t columns, const Part& part, bool aligned,
                               A (&values)[kVecs][kVec<T>], A* shared) {
  constexpr int kGroup = kLanes < kWarpSize ? kWarpSize : kLanes, kGroups = kRowThreads<kLanes> / kGroup;
  if constexpr (kLanes < kWarpSize) {
#pragma unroll
    for (int v = 0; v < kVecs; ++v) strided_warp_sum(values[v], kLanes);  // the rows that share a warp
  }
  const int group = threadIdx.x / kGroup;
  const bool first_row = threadIdx.x % kGroup < kLanes;
  A* const mine = shared + part.lane() * (kVecs * kVec<T>);
  for (int g = 1; g < kGroups; ++g) {
    if (group == g && first_row) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i) mine[v * kVec<T> + i] = values[v][i];
      }
    }
    __syncthreads();
    if (group == 0 && first_row) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i) values[v][i] += mine[v * kVec<T> + i];
      }
    }
    __syncthreads();
  }
  if (group != 0 || !first_row) return;
#pragma unroll
  for (int v = 0; v < kVecs; ++v)
    store_line<T, Part::kStep>(partials, line, columns, part.column(v), part.end(), aligned, values[v]);
}

// Blocks that fit on an SM at once, by the registers they need: 85 a thread for one vector of each input, 128 for two,
// 168 for three.
template <int kLanes, int kVecs>
constexpr int kBackwardBlocks = (kVecs == 1   ? 768
                                 : kVecs == 2 ? 512
                                              : 384) /
                                kRowThreads<kLanes>;

template <class T, class Statistics, int kLanes, int kVecs, bool kCluster, bool kAligned>
__global__ void __launch_bounds__(kRowThreads<kLanes>, kBackwardBlocks<kLanes, kVecs>)
    row_norm_backward_kernel(const RowNormBackward op, const PartialSums partials, const unsigned blocks,
                             const int lines_of_block, const int64_t capacity, const Compute<T> inverse_n,
                             const Compute<T> weight_offset) {
  follow();
  using A = Compute<T>;
  using Part = RowPart<T, kLanes, kVecs, kCluster, kAligned>;
  using Sum = GroupSum<A, Statistics::kBackwardSums, kRowThreads<kLanes>, kLanes, kCluster>;
  using Gradient = typename Statistics::template Gradient<A>;
  using Inputs = RowInputs<T, Statistics, kVecs>;
  constexpr bool kHasBias = Statistics::kParameters == 2;
  constexpr int kGather = Part::kRows > 1 ? kLanes * kVecs * kVec<T> : 0;
  SHARED_ARRAY(A, shared, Sum::kSharedValues > kGather ? Sum::kSharedValues : kGather);
  DYNAMIC_SHARED(char, parameters);
  Sum group_sum(shared);
  const SharedParameters<T, 1> weights(parameters, op.param_dtype, capacity, weight_offset);

  const Part part(op.columns);
  const auto load = [&](int64_t row) {
    Inputs in{};
    if (row >= op.rows) return in;
    part.load(static_cast<const T*>(op.grad_output) + row * op.columns, in.grad_output);
    part.load(static_cast<const T*>(op.input) + row * op.columns, in.input);
    in.saved = in.saved.load(op, row);
    return in;
  };

  const int64_t row_step = static_cast<int64_t>(blocks) * Part::kRows;
  int64_t row = part.row();
  Inputs next;  // single elements on their way need a register each: too many for the next row's, too
  if constexpr (kAligned) next = load(row);

  weights.fetch({op.weight, nullptr}, op.columns);
  __syncthreads();
  // Three vectors of it find no room in registers.
  constexpr bool kWeightStays = kVecs <= 2;
  const auto read_weight = [&](int v, A(&w)[1][kVec<T>]) {
    weights.with_type([&](auto type) { weights.template read<Part::kStep>(type, part.column(v), w); });
  };
  A weight[kWeightStays ? kVecs : 1][1][kVec<T>];
  if constexpr (kWeightStays) {
#pragma unroll
    for (int v = 0; v < kVecs; ++v) read_weight(v, weight[v]);
  }

  for (int line = 0; line < lines_of_block; ++line) {
    A weight_sum[kVecs][kVec<T>] = {}, bias_sum[kVecs][kVec<T>] = {};
    // All threads go round as often as the block's first row does: they meet at barriers.
    for (int left = kRowsOfLine; left > 0 && row - part.row_of_block() < op.rows; --left, row += row_step) {
      opaque(row);
      Inputs in = kAligned ? next : load(row);
      if constexpr (kAligned) next = load(row + row_step);

      // Computed twice rather than kept: registers are what limits the length of a row here.
      const auto xhat = [&](int v, int i) { return in.saved.xhat(in.input[v][i]); };
      const auto weight_of = [&](int v, A(&w)[1][kVec<T>]) {
        if constexpr (kWeightStays) {
#pragma unroll
          for (int i = 0; i < kVec<T>; ++i) w[0][i] = weight[v][0][i];
        } else {
          read_weight(v, w);
        }
      };
      A sums[Statistics::kBackwardSums] = {};
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        A x[kVec<T>], w[1][kVec<T>];
        weight_of(v, w);
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i) x[i] = xhat(v, i);
        if (!Statistics::kKeepsZeros && !part.is_whole(v)) {
#pragma unroll
          for (int i = 0; i < kVec<T>; ++i)
            if (kAligned || part.column(v, i) >= part.end()) x[i] = 0;
        }
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i) Gradient::add(in.grad_output[v][i] * w[0][i], x[i], sums);
      }
      group_sum(sums);
      const Gradient gradient = Gradient::of(sums, inverse_n);
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        opaque(in.grad_output[v].words);
        opaque(in.input[v].words);
        A dx[kVec<T>], w[1][kVec<T>];
        weight_of(v, w);
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i) {
          const A dy = in.grad_output[v][i], x = gradient.corrected(xhat(v, i));
          dx[i] = gradient(dy * w[0][i], x) * in.saved.rstd;
          if (partials.weight) weight_sum[v][i] = fma(dy, x, weight_sum[v][i]);
          if (kHasBias && partials.bias) bias_sum[v][i] += dy;
        }
        if (op.grad_input && row < op.rows) part.store(static_cast<T*>(op.grad_input) + row * op.columns, v, dx);
      }
    }

    if constexpr (Part::kRows > 1) __syncthreads();  // the exchange's memory now gathers the rows' sums
    const auto store = [&](void* to, A(&values)[kVecs][kVec<T>]) {
      if (to)
        store_partials<T, kLanes, kVecs>(to, part.block_of_row() * lines_of_block + line, op.columns, part, kAligned,
                                         values, shared);
    };
    store(partials.weight, weight_sum);
    if constexpr (kHasBias) store(partials.bias, bias_sum);
  }
  group_sum.leave();
  group_sum.finish();
}

// ------------------------------------------------------------------------------------------------ launch configuration
template <class T, class Statistics, RowLaunch kLaunch, bool kAligned>
void launch_row_norm_backward(const RowNormBackward& op, Run& run) {
  constexpr int kLanes = kLaunch.lanes, kVecs = kLaunch.vecs, kThreads = kRowThreads<kLanes>,
                kCluster = kLaunch.cluster;
  constexpr int kRows = kThreads / kLanes;
  const int64_t fit = std::max(1, run.device.sm_count * kBackwardBlocks<kLanes, kVecs> / kCluster);
  const int64_t blocks = std::min(fit, ceil_div(op.rows, kRows));
  const int64_t lines_of_block = ceil_div(op.rows, blocks * kRows * kRowsOfLine), lines = blocks * lines_of_block;
  const PartialSums partials = take_partial_sums<T>(op, run, lines);
  const int64_t capacity = int64_t{kCluster} * kLanes * kVecs * kVec<T>;  // weights also where a row has ended
  run.launch(row_norm_backward_kernel<T, Statistics, kLanes, kVecs, (kCluster > 1), kAligned>,
             {.grid = grid_of(blocks * kCluster),
              .block = kThreads,
              .shared_bytes = static_cast<size_t>(shared_parameter_bytes<T>(op.param_dtype, capacity)),
              .cluster = kCluster},
             op, partials, grid_of(blocks), static_cast<int>(lines_of_block), capacity,
             1 / static_cast<Compute<T>>(op.columns), static_cast<Compute<T>>(op.weight_offset));
  launch_sum_partials<T>(op, run, partials, lines);
}

template <class T, class Statistics, bool kAligned>
void row_norm_backward(const RowNormBackward& op, Run& run) {
  const bool launched =
      choose_launch<backward_launches<Statistics, kAligned>()>(ceil_div(op.columns, kVec<T>), [&]<RowLaunch kLaunch>() {
        if (kLaunch.cluster > 1 && !run.device.has_clusters) return false;
        launch_row_norm_backward<T, Statistics, kLaunch, kAligned>(op, run);
        return true;
      });
  if (!launched) long_row_norm_backward<T, Statistics>(op, run, kAligned);
}

template <class T, class Statistics>
void row_norm_backward(const RowNormBackward& op, Run& run) {
  if (op.columns % kVec<T> == 0 && is_aligned(op.grad_output, op.input, op.weight, op.grad_input))
    row_norm_backward<T, Statistics, true>(op, run);
  else
    row_norm_backward<T, Statistics, false>(op, run);
}

}  // namespace normext::cuda
