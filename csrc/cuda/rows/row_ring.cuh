// row_ring.cuh -- the norms of long rows forward on sm_90 and later: rows come by bulk copies into a ring of stages in
// shared memory, several on their way while one is computed, and are read from there as often as they are needed.
//
//   set_zero_kernel      the counter that rows are drawn from, if there are more than all stages hold
//   ring_forward_kernel  aligned rows of more than 512 vectors, of which three fit into a block's shared memory beside
//                        their parameters: ring_launches.cuh
//
// Bulk copies take no registers and no instructions but one thread's, so few threads keep much on its way. Rows that
// are not at multiples of 16 bytes have none. Every block has a first row for each stage; those behind them it draws,
// one after the other, when it is through with one: SMs differ in speed, and equal shares would be as slow as the
// slowest. Where there are several lines of parameters, blocks have a few rows of one line each, and the GPU hands out
// the blocks. Which block computes a row makes no difference to it: how threads share it depends on its length alone.
#pragma once
#include "cuda/elements/launch.cuh"
#include "cuda/elements/reduce.cuh"
#include "cuda/rows/ring_launches.cuh"
#include "cuda/rows/row.cuh"
#include "cuda/rows/row_places.cuh"
#include "cuda/rows/row_statistics.cuh"
#include "cuda/rows/shared_parameters.cuh"
#include "ops/row_norm.h"

namespace normext::cuda {

// How a launch shares out its rows, and where they lie.
template <class T>
struct RingPlan {
  RowPlaces input;
  Lines weight, bias;
  unsigned* counter;  // null where every block knows its rows
  int stages;
  Compute<T> inverse_n, weight_offset;
};

// The stages of a block, which one of its threads fills.
template <class T>
class Ring {
 public:
  // Of rows of one line, from `first` up to `end`.
  __device__ Ring(const RowNormForward& op, const RingPlan<T>& plan, int64_t first, int64_t end, char* stages,
                  TransferBarrier* full, int64_t* rows)
      : op_(op), plan_(plan), next_(first + blockIdx.x), end_(end), stages_(stages), full_(full), rows_(rows) {}

  // By all threads; a barrier must follow.
  __device__ void start() {
    if (!is_filler()) return;
#pragma unroll 1
    for (int stage = 0; stage < plan_.stages; ++stage) barrier_init(full_ + stage, 1);
    fence_transfers();
#pragma unroll 1
    for (int stage = 0; stage < plan_.stages; ++stage, next_ += gridDim.x) fill(stage);
    if (plan_.counter) draw();
  }

  // Waits for a stage's row, and says which it is: one too many if there are no more.
  __device__ int64_t await(int stage, unsigned parity) {
    barrier_wait(full_ + stage, parity);
    return rows_[stage];
  }
  __device__ const T* values(int stage) const { return reinterpret_cast<const T*>(stages_) + stage * op_.columns; }

  // By all threads, which have met since they read the stage last.
  __device__ void refill(int stage) {
    if (!is_filler()) return;
    fill(stage);
    if (plan_.counter)
      draw();
    else
      next_ += gridDim.x;
  }

 private:
  __device__ static bool is_filler() { return threadIdx.x == blockDim.x - kWarpSize; }  // of a warp with least to do

  // By the next row.
  __device__ void fill(int stage) {
    rows_[stage] = next_;
    if (next_ >= end_) return barrier_arrive(full_ + stage);
    const auto bytes = static_cast<unsigned>(op_.columns * sizeof(T));
    barrier_arrive_expecting(full_ + stage, bytes);
    bulk_copy(stages_ + stage * int64_t{bytes}, static_cast<const T*>(op_.input) + plan_.input[next_], bytes,
              full_ + stage);
  }
  // A row earlier than it is needed: it takes as long as a load.
  __device__ void draw() { next_ = int64_t{plan_.stages} * gridDim.x + take_next(plan_.counter); }

  const RowNormForward& op_;
  const RingPlan<T>& plan_;
  int64_t next_, end_;
  char* stages_;
  TransferBarrier* full_;  // of each stage: its row has come
  int64_t* rows_;
};

// A row in shared memory, of which a thread has up to kRingVecs vectors, neighbouring threads' next to each other.
template <class T>
struct RingRow {
  using A = Compute<T>;
  const T* values;
  int end;
  T first;

  __device__ static int column(int v) { return (v * blockDim.x + threadIdx.x) * kVec<T>; }

  __device__ void differences(int v, A scale, A about, A (&out)[kVec<T>]) const {
    const auto pack = Pack<T>::of_bits(*reinterpret_cast<const uint4*>(values + column(v)));
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
      if (column(v) >= end) break;
      A d[kVec<T>], terms[kVec<T>][kCount];
      differences(v, scale, about, d);
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

template <class T, class Statistics>
__global__ void __launch_bounds__(kRingThreads, 1)
    ring_forward_kernel(const RowNormForward op, const RingPlan<T> plan) {
  follow();
  using A = Compute<T>;
  using Sum = GroupSum<A, Statistics::kForwardSums, kRingThreads, kRingThreads, false>;
  SHARED_ARRAY(A, exchange, Sum::kSharedValues);
  SHARED_ARRAY(TransferBarrier, full, kRingStages);
  SHARED_ARRAY(int64_t, rows, kRingStages);
  DYNAMIC_SHARED(char, shared);
  constexpr int kParameters = Statistics::kParameters;
  const SharedParameters<T, kParameters> parameters(shared, op.param_dtype, op.columns, plan.weight_offset);
  const int64_t line = line_of_block(), first = line * op.lines.rows_per_line, end = first + op.lines.rows_per_line;
  if (first >= op.rows) return;
  Ring<T> ring(op, plan, first, end, shared + kParameters * shared_parameter_bytes<T>(op.param_dtype, op.columns), full,
               rows);

  ring.start();
  for (int i = threadIdx.x; i < Sum::kSharedValues; i += blockDim.x) exchange[i] = 0;  // of warps that are not there
  parameters.fetch({plan.weight[line], plan.bias[line]}, op.columns);
  __syncthreads();

  Sum block_sum(exchange);
  int previous = -1, stage = 0;
  unsigned parity = 0;
  for (;;) {
    const int64_t index = ring.await(stage, parity);
    if (index >= end) return;
    RingRow<T> row{ring.values(stage), static_cast<int>(op.columns), *ring.values(stage)};
    const auto s = row_statistics<typename Statistics::template OfRow<A>, false>(row, true, Statistics::is_centered(op),
                                                                                 plan.inverse_n, block_sum);
    if (previous >= 0) ring.refill(previous);  // all have met for the sums, and are through with the row before
    const A scaled_rstd = s.scaled_rstd(static_cast<A>(op.eps));
    const auto normalization = s.normalization(scaled_rstd);
    if (threadIdx.x == 0) s.store(op, index, scaled_rstd);
    T* const output = static_cast<T*>(op.output) + index * op.columns;
    parameters.with_type([&]<class P>(Type<P> type) {
#pragma unroll
      for (int v = 0; v < kRingVecs; ++v) {
        if (row.column(v) >= row.end) break;
        A d[kVec<T>], weight_bias[kParameters][kVec<T>], y[kVec<T>];
        row.differences(v, s.scale, normalization.center, d);
        parameters.template read<1>(type, row.column(v), weight_bias);
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i) y[i] = Statistics::affine(normalization.of_difference(d[i]), weight_bias, i);
        store_vector(output + row.column(v), y);
      }
    });
    previous = stage;
    if (++stage == plan.stages) stage = 0, parity ^= 1;
  }
}

// ------------------------------------------------------------------------------------------------ launch configuration
template <class T, class Statistics>
bool launch_ring_forward(const RowNormForward& op, Run& run) {
  const int64_t row_bytes = op.columns * static_cast<int64_t>(sizeof(T));
  const int64_t parameter_bytes = Statistics::kParameters * shared_parameter_bytes<T>(op.param_dtype, op.columns);
  const RingLaunch launch = ring_launch(row_bytes, parameter_bytes, run.device);
  if (launch.stages == 0) return false;
  const int64_t lines = lines_of(op), rows_of_line = op.lines.rows_per_line;
  const int64_t resident = int64_t{run.device.sm_count} * launch.blocks;
  const int64_t least = lines == 1 ? 1 : ceil_div(rows_of_line, 4 * launch.stages);
  const int64_t blocks = std::min(rows_of_line, std::max(least, resident / lines));
  const bool draws = lines == 1 && op.rows > blocks * launch.stages;
  unsigned* const counter = draws ? run.take<unsigned>(1) : nullptr;
  const RingPlan<T> plan{{op.input_strides, op.rows},
                         weights_of<T>(op),
                         biases_of<T>(op),
                         counter,
                         launch.stages,
                         1 / static_cast<Compute<T>>(op.columns),
                         static_cast<Compute<T>>(op.weight_offset)};
  if (draws) run.launch(set_zero_kernel, {.grid = 1, .block = kWarpSize}, counter);
  run.launch(ring_forward_kernel<T, Statistics>,
             {.grid = grid_of_lines(blocks, lines),
              .block = static_cast<unsigned>(launch.threads),
              .shared_bytes = static_cast<size_t>(parameter_bytes + launch.stages * row_bytes)},
             op, plan);
  return true;
}

}  // namespace normext::cuda
