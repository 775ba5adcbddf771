// ring_backward.cuh -- the norms of long rows backward on sm_90 and later, through the ring of ring.cuh: grad_output,
// input and, if there is one, the gradient of the sum.
//
//   ring_backward_kernel  aligned rows of more than 256 vectors and one line of parameters, of which three fit into a
//                         block's shared memory beside the weight, or of longer ones three parts into that of each
//                         block of a cluster: ring_launches.cuh
//   sum_partials_kernel   behind it, if a gradient of a parameter is asked for: see partial_sums.cuh
//
// A thread's columns are the same in every row, so what it adds up for the weight and the bias stays in its registers.
// Every block, or cluster, has a fixed share of the rows: these sums would else not be the same on every run. Of few
// rows, two blocks add up theirs before they leave them behind, for a line of them costs as much as a row and a third.
#pragma once
#include "cuda/elements/launch.cuh"
#include "cuda/elements/reduce.cuh"
#include "cuda/rows/partial_sums.cuh"
#include "cuda/rows/ring.cuh"
#include "cuda/rows/row_places.cuh"
#include "cuda/rows/row_statistics.cuh"
#include "cuda/rows/shared_parameters.cuh"
#include "ops/row_norm.h"

namespace normext::cuda {

template <class T>
struct RingBackward {
  static constexpr int kGradOutput = 0, kInput = 1, kGradSum = 2;  // the ring's arrays; the last may be missing
  RingPlan<T, 3> ring;
  int parts_of_block;
  bool in_pairs;  // the blocks: clusters of two
  Compute<T> inverse_n, weight_offset;
};

// The sums of the two blocks of a pair, together: each block has every second vector of a thread's. `shared`: of at
// least two lines, which nothing is on its way to.
template <class T, bool kHasBias>
class PairedSums {
  using A = Compute<T>;
  using Values = A[kRingVecs][kVec<T>];

 public:
  __device__ PairedSums(A* shared, int end) : shared_(shared), end_(end) {}

  __device__ bool has(int v) const { return v % 2 == static_cast<int>(cluster_rank()); }

  __device__ void add(ParameterSums<T, kRingVecs>& sums) const {
    leave_to_peer(shared_, sums.weight);
    if constexpr (kHasBias) leave_to_peer(shared_ + end_, sums.bias);
    cluster_arrive();
    cluster_wait();
    const A* const peer = cluster_peer(shared_, cluster_rank() ^ 1);
    add_peer(peer, sums.weight);
    if constexpr (kHasBias) add_peer(peer + end_, sums.bias);
    cluster_arrive();
  }
  // By all threads before they return: a block's shared memory must outlive its peer's reading it.
  __device__ static void finish() { cluster_wait(); }

 private:
  __device__ void leave_to_peer(A* line, const Values& values) const {
#pragma unroll
    for (int v = 0; v < kRingVecs; ++v)
      if (!has(v)) store_row<1>(line, ring_column<T>(v), end_, true, values[v]);
  }
  __device__ void add_peer(const A* line, Values& values) const {
#pragma unroll
    for (int v = 0; v < kRingVecs; ++v) {
      if (!has(v) || ring_column<T>(v) >= end_) continue;
#pragma unroll
      for (int i = 0; i < kVec<T>; i += kVec<A>) {
        const auto theirs = load_shared(line + ring_column<T>(v) + i);
#pragma unroll
        for (int k = 0; k < kVec<A>; ++k) values[v][i + k] += theirs[k];
      }
    }
  }

  A* shared_;
  int end_;
};

// What a thread does with its part of the row at hand.
template <class T, class Statistics, bool kCluster>
struct RingGradients {
  using A = Compute<T>;
  using Saved = typename Statistics::template Saved<A>;
  using Gradient = typename Statistics::template Gradient<A>;
  using Sums = ParameterSums<T, kRingVecs>;
  using Plan = RingBackward<T>;

  const RowNormBackward& op;
  const Ring<T, 3, kCluster, false>& ring;
  const SharedParameters<T, 1>& weights;
  const RingPart<kCluster>& part;

  // Calls f(v, column, grad_output, input, grad_output * weight) for the thread's vectors.
  template <class F>
  __device__ void for_vectors(const F& f) const {
    weights.with_type([&]<class P>(Type<P> type) {
#pragma unroll
      for (int v = 0; v < kRingVecs; ++v) {
        const int column = ring_column<T>(v);
        if (column >= part.columns) break;
        const auto dy = load_shared(ring.values(Plan::kGradOutput) + column);
        const auto x = load_shared(ring.values(Plan::kInput) + column);
        A g[1][kVec<T>];
        weights.template read<1>(type, column, g);
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i) g[0][i] *= dy[i];
        f(v, column, dy, x, g[0]);
      }
    });
  }

  // Its share of the sums that the gradient of a row takes.
  template <int kCount>
  __device__ void sum(const Saved& saved, A (&sums)[kCount]) const {
    for_vectors([&](int, int, const Pack<T>&, const Pack<T>& x, const A(&g)[kVec<T>]) {
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) Gradient::add(g[i], saved.xhat(x[i]), sums);
    });
  }

  // The gradient of a row, and what the row adds to the parameters'.
  __device__ void map(int64_t row, const Saved& saved, const Gradient& gradient, Sums& sums) const {
    T* const to = static_cast<T*>(op.grad_input) + row * op.columns + part.first;
    for_vectors([&](int v, int column, const Pack<T>& dy, const Pack<T>& x, const A(&g)[kVec<T>]) {
      A dx[kVec<T>];
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) {
        const A xhat = gradient.corrected(saved.xhat(x[i]));
        dx[i] = gradient(g[i], xhat) * saved.rstd;
        sums.weight[v][i] = fma(dy[i], xhat, sums.weight[v][i]);
        sums.bias[v][i] += dy[i];
      }
      if (op.grad_sum) {
        const auto of_sum = load_shared(ring.values(Plan::kGradSum) + column);
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i) dx[i] += of_sum[i];
      }
      if (op.grad_input) store_vector(to + column, dx);
    });
  }
};

template <class T, class Statistics, bool kCluster>
__global__ void __launch_bounds__(kRingBackwardThreads, 1)
    ring_backward_kernel(const RowNormBackward op, const RingBackward<T> plan, const PartialSums partials) {
  follow();
  using Rows = RingGradients<T, Statistics, kCluster>;
  using A = typename Rows::A;
  using Pair = PairedSums<T, Statistics::kParameters == 2>;
  using Sum = RingSum<Statistics::kBackwardSums, kRingBackwardThreads, kCluster>;
  SHARED_ARRAY(A, exchange, Sum::kSharedValues);
  SHARED_ARRAY(float4, messages, Sum::kMessages);
  SHARED_ARRAY(TransferBarrier, arrived, Sum::kBarriers);
  SHARED_ARRAY(TransferBarrier, full, kRingStages);
  SHARED_ARRAY(int64_t, numbers, kRingStages);
  DYNAMIC_SHARED(char, shared);
  const RingPart<kCluster> part{static_cast<int>(op.columns), plan.ring.share};
  const SharedParameters<T, 1> weights(shared, op.param_dtype, plan.ring.share, plan.weight_offset);
  Ring<T, 3, kCluster, false> ring(plan.ring, part, 0, op.rows,
                                   shared + shared_parameter_bytes<T>(op.param_dtype, plan.ring.share), full, numbers);
  Sum sum_of_row(exchange, messages, arrived);
  const Rows rows{op, ring, weights, part};

  ring.start();
  sum_of_row.start();
  int64_t row = part.group();
  auto next = Rows::Saved::load(op, row);
  weights.fetch({op.weight, nullptr}, part.columns, part.first);
  meet<kCluster>();

  for (int of_block = 0; of_block < plan.parts_of_block; ++of_block) {
    typename Rows::Sums parameter_sums;
    for (int left = kRowsOfPart; left > 0 && row < op.rows; --left, row += plan.ring.groups, ring.advance()) {
      const auto saved = next;
      if (row + plan.ring.groups < op.rows) next = Rows::Saved::load(op, row + plan.ring.groups);
      ring.await();
      A sums[Statistics::kBackwardSums] = {};
      rows.sum(saved, sums);
      sum_of_row(sums);
      ring.refill();  // all have met for the sums, and are through with the row before
      rows.map(row, saved, Rows::Gradient::of(sums, Statistics::is_centered(op), plan.inverse_n), parameter_sums);
    }

    int64_t group = part.group();
    const Pair pair(reinterpret_cast<A*>(shared), part.columns);
    const bool paired = !kCluster && plan.in_pairs;
    if (paired) {
      __syncthreads();  // all are through with the last row
      pair.add(parameter_sums);
      group /= 2;
    }
    const int64_t index = group * plan.parts_of_block + of_block;
    const auto store = [&](void* to, const A(&values)[kRingVecs][kVec<T>]) {
      if (!to) return;
#pragma unroll
      for (int v = 0; v < kRingVecs; ++v) {
        if (paired && !pair.has(v)) continue;
        store_part<T, 1>(partials, to, index, op.columns, part.first + ring_column<T>(v), part.first + part.columns,
                         true, values[v]);
      }
    };
    store(partials.weight, parameter_sums.weight);
    if constexpr (Statistics::kParameters == 2) store(partials.bias, parameter_sums.bias);
  }
  if constexpr (kCluster)
    meet<kCluster>();
  else if (plan.in_pairs)
    Pair::finish();
}

// ------------------------------------------------------------------------------------------------ launch configuration
template <class T, class Statistics>
bool launch_ring_backward(const RowNormBackward& op, Run& run) {
  const int64_t weight_bytes = shared_parameter_bytes<T>(op.param_dtype, kVec<T>);
  const int arrays = op.grad_sum ? 3 : 2;
  const RingLaunch launch = ring_backward_launch({op.columns / kVec<T>, weight_bytes, arrays, arrays + 1}, run.device);
  if (launch.stages == 0) return false;
  const int64_t groups = std::min(op.rows, launch.groups(run.device));
  const int64_t parts_of_block = ceil_div(op.rows, groups * kRowsOfPart);
  const bool in_pairs =
      launch.cluster == 1 && parts_of_block == 1 && groups % 2 == 0 && (op.grad_weight || op.grad_bias);
  const int64_t parts = in_pairs ? groups / 2 : groups * parts_of_block;
  const PartialSums partials = take_partial_sums<T>(op, run, parts, true);
  const auto array = [&](const void* rows, const RowStrides& strides) {
    return RingArray<T>{static_cast<const T*>(rows), {strides, op.rows}};
  };
  const RingBackward<T> plan{{{array(op.grad_output, op.grad_output_strides), array(op.input, op.input_strides),
                               array(op.grad_sum, {op.rows, 0, op.columns})},
                              arrays,
                              static_cast<int>(launch.part * kVec<T>),
                              launch.stages,
                              grid_of(groups),
                              nullptr},
                             static_cast<int>(parts_of_block),
                             in_pairs,
                             1 / static_cast<Compute<T>>(op.columns),
                             static_cast<Compute<T>>(op.weight_offset)};
  const Launch how{.grid = grid_of(groups * launch.cluster),
                   .block = static_cast<unsigned>(launch.threads),
                   .shared_bytes = static_cast<size_t>(launch.part * (weight_bytes + launch.stages * arrays * 16)),
                   .cluster = in_pairs ? 2u : static_cast<unsigned>(launch.cluster)};
  if (launch.cluster == 1)
    run.launch(ring_backward_kernel<T, Statistics, false>, how, op, plan, partials);
  else
    run.launch(ring_backward_kernel<T, Statistics, true>, how, op, plan, partials);
  launch_sum_partials<T>(op, run, partials, parts);
  return true;
}

}  // namespace normext::cuda
