// ring_forward.cuh -- the norms of long rows forward on sm_90 and later, through the ring of ring.cuh.
//
//   set_zero_kernel      the counter that rows are drawn from, if there are more than all stages hold
//   ring_forward_kernel  aligned rows of more than 256 vectors, of which three fit into a block's shared memory beside
//                        their parameters, or of longer ones three parts into that of each block of a cluster:
//                        ring_launches.cuh
//
// Rows behind the first of every stage are drawn: SMs differ in speed, and equal shares would be as slow as the
// slowest. Clusters have equal shares: they would have to tell each other what they draw. Where there are several lines
// of parameters, blocks have a few rows of one line each, and the GPU hands out the blocks. Which block computes a row
// makes no difference to it: how threads share it depends on its length alone.
#pragma once
#include "cuda/elements/launch.cuh"
#include "cuda/elements/reduce.cuh"
#include "cuda/rows/ring.cuh"
#include "cuda/rows/row.cuh"
#include "cuda/rows/row_places.cuh"
#include "cuda/rows/row_statistics.cuh"
#include "cuda/rows/shared_parameters.cuh"
#include "ops/row_norm.h"

namespace normext::cuda {

template <class T>
struct RingForward {
  static constexpr int kInput = 0, kResidual = 1;  // the ring's arrays; the last may be missing
  RingPlan<T, 2> ring;
  Lines weight, bias;
  Compute<T> inverse_n, weight_offset;
};

// A row in shared memory, or this block's part of it; or the sum of two, rounded, which is added up again wherever it
// is read: there is time for it while twice as much is moved.
template <class T, class Part>
struct RingRow {
  using A = Compute<T>;
  const T *values, *residual;  // residual: null if there is none
  const Part& part;
  A first = at(0);

  __device__ A at(int column) const {
    const A value = widen(values[column]);
    return residual ? widen(narrow<T>(value + widen(residual[column]))) : value;
  }
  __device__ Pack<T> vector(int v) const {
    const auto pack = load_shared(values + ring_column<T>(v));
    if (!residual) return pack;
    const auto other = load_shared(residual + ring_column<T>(v));
    A sum[kVec<T>];
#pragma unroll
    for (int i = 0; i < kVec<T>; ++i) sum[i] = pack[i] + other[i];
    return Pack<T>::of(sum);
  }
  __device__ static void differences(const Pack<T>& pack, A scale, A about, A (&out)[kVec<T>]) {
#pragma unroll
    for (int i = 0; i < kVec<T>; ++i) out[i] = fma(pack[i], scale, -about);
  }

  // See Row::sum().
  template <int kCount, class F>
  __device__ void sum(A scale, A about, const F& f, A (&totals)[kCount]) const {
#pragma unroll
    for (int k = 0; k < kCount; ++k) totals[k] = 0;
#pragma unroll
    for (int v = 0; v < kRingVecs; ++v) {
      if (ring_column<T>(v) >= part.columns) break;
      A d[kVec<T>], terms[kVec<T>][kCount];
      differences(vector(v), scale, about, d);
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) f(d[i], terms[i]);
      sum_pairwise(terms);
#pragma unroll
      for (int k = 0; k < kCount; ++k) totals[k] += terms[0][k];
    }
  }
};

static __global__ void __launch_bounds__(kWarpSize) set_zero_kernel(unsigned* counter) {
  follow();
  if (threadIdx.x == 0) *counter = 0;
}

template <class T, class Statistics, bool kCluster>
__global__ void __launch_bounds__(kRingThreads, 1)
    ring_forward_kernel(const RowNormForward op, const RingForward<T> plan) {
  follow();
  using A = Compute<T>;
  using Sum = RingSum<Statistics::kForwardSums, kRingThreads, kCluster>;
  using OfRow =
      std::conditional_t<kCluster, typename Statistics::template OfParts<A>, typename Statistics::template OfRow<A>>;
  SHARED_ARRAY(A, exchange, Sum::kSharedValues);
  SHARED_ARRAY(float4, messages, Sum::kMessages);
  SHARED_ARRAY(TransferBarrier, arrived, Sum::kBarriers);
  SHARED_ARRAY(TransferBarrier, full, kRingStages);
  SHARED_ARRAY(int64_t, rows, kRingStages);
  DYNAMIC_SHARED(char, shared);
  constexpr int kParameters = Statistics::kParameters;
  const RingPart<kCluster> part{static_cast<int>(op.columns), plan.ring.share};
  const SharedParameters<T, kParameters> parameters(shared, op.param_dtype, plan.ring.share, plan.weight_offset);
  const int64_t line = line_of_block(), first = line * op.lines.rows_per_line, end = first + op.lines.rows_per_line;
  if (first >= op.rows) return;
  char* const stages = shared + kParameters * shared_parameter_bytes<T>(op.param_dtype, plan.ring.share);
  Ring<T, 2, kCluster, !kCluster> ring(plan.ring, part, first, end, stages, full, rows);
  Sum sum_of_row(exchange, messages, arrived);

  ring.start();
  sum_of_row.start();
  parameters.fetch({plan.weight[line], plan.bias[line]}, part.columns, part.first);
  meet<kCluster>();

  for (;; ring.advance()) {
    const int64_t index = ring.await();
    if (index >= end) break;
    RingRow<T, RingPart<kCluster>> row{ring.values(plan.kInput), op.residual ? ring.values(plan.kResidual) : nullptr,
                                       part};
    const auto s = row_statistics<OfRow, false>(row, true, Statistics::is_centered(op), plan.inverse_n, sum_of_row);
    ring.refill();  // all have met for the sums, and are through with the row before
    const A scaled_rstd = s.scaled_rstd(static_cast<A>(op.eps));
    const auto normalization = s.normalization(scaled_rstd);
    if (threadIdx.x == 0 && part.first == 0) s.store(op, index, scaled_rstd);
    const int64_t place = index * op.columns + part.first;
    T* const output = static_cast<T*>(op.output) + place;
    T* const sum = static_cast<T*>(op.sum) + place;
    parameters.with_type([&]<class P>(Type<P> type) {
#pragma unroll
      for (int v = 0; v < kRingVecs; ++v) {
        const int column = ring_column<T>(v);
        if (column >= part.columns) break;
        A d[kVec<T>], weight_bias[kParameters][kVec<T>], y[kVec<T>];
        const auto pack = row.vector(v);
        if (op.residual) store16(sum + column, pack.bits());
        row.differences(pack, s.scale, normalization.center, d);
        parameters.template read<1>(type, column, weight_bias);
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i) y[i] = Statistics::affine(normalization.of_difference(d[i]), weight_bias, i);
        store_vector(output + column, y);
      }
    });
  }
  if constexpr (kCluster) meet<kCluster>();
}

// ------------------------------------------------------------------------------------------------ launch configuration
template <class T, class Statistics>
bool launch_ring_forward(const RowNormForward& op, Run& run) {
  const int64_t parameter_bytes = Statistics::kParameters * shared_parameter_bytes<T>(op.param_dtype, kVec<T>);
  const int arrays = op.residual ? 2 : 1;
  const RingLaunch launch =
      ring_forward_launch({op.columns / kVec<T>, parameter_bytes, arrays, 2 * arrays}, run.device);
  if (launch.stages == 0) return false;
  const int64_t lines = lines_of(op), rows_of_line = op.lines.rows_per_line;
  const int64_t least = lines == 1 ? 1 : ceil_div(rows_of_line, 4 * launch.stages);
  const int64_t groups = std::min(rows_of_line, std::max(least, launch.groups(run.device) / lines));
  const bool draws = lines == 1 && launch.cluster == 1 && op.rows > groups * launch.stages;
  unsigned* const counter = draws ? run.take<unsigned>(1) : nullptr;
  const auto array = [&](const void* rows, const RowStrides& strides) {
    return RingArray<T>{static_cast<const T*>(rows), {strides, op.rows}};
  };
  const RingForward<T> plan{{{array(op.input, op.input_strides), array(op.residual, op.residual_strides)},
                             arrays,
                             static_cast<int>(launch.part * kVec<T>),
                             launch.stages,
                             grid_of(groups),
                             counter},
                            weights_of<T>(op),
                            biases_of<T>(op),
                            1 / static_cast<Compute<T>>(op.columns),
                            static_cast<Compute<T>>(op.weight_offset)};
  if (draws) run.launch(set_zero_kernel, {.grid = 1, .block = kWarpSize}, counter);
  const Launch how{.grid = grid_of_lines(groups * launch.cluster, lines),
                   .block = static_cast<unsigned>(launch.threads),
                   .shared_bytes = static_cast<size_t>(launch.part * (parameter_bytes + launch.stages * arrays * 16)),
                   .cluster = static_cast<unsigned>(launch.cluster)};
  if (launch.cluster == 1)
    run.launch(ring_forward_kernel<T, Statistics, false>, how, op, plan);
  else
    run.launch(ring_forward_kernel<T, Statistics, true>, how, op, plan);
  return true;
}

}  // namespace normext::cuda
