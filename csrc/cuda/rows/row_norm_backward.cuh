// row_norm_backward.cuh -- the norms of rows backward: one pass over input and grad_output gives grad_input, and for
// each block its part of grad_weight and grad_bias; a second, small kernel adds the parts up.
//
//   row_norm_backward_kernel   rows of up to 1024 vectors of 16 bytes, and of up to 2048 by clusters of two blocks,
//                              where the GPU has them
//   sum_partials_kernel        behind it, if a gradient of a parameter is asked for: see partial_sums.cuh
//   row_norm_long.cuh          longer rows
//   ring_backward.cuh          on sm_90 and later, in the place of either: rows of more than 256 vectors that fit there
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
#include "cuda/rows/row_places.cuh"
#include "cuda/rows/row_sources.cuh"
#include "cuda/rows/row_statistics.cuh"
#include "cuda/rows/shared_parameters.cuh"
#include "ops/row_norm.h"

namespace normext::cuda {

// How the rows of a launch are shared out, and where they lie.
template <class T>
struct BackwardPlan {
  RowPlaces grad_output, input;
  Lines weight;
  unsigned blocks;  // of a line
  int parts_of_block;
  int64_t capacity;  // columns that there is shared memory for
  Compute<T> inverse_n, weight_offset;
};

// A row's inputs as they come from memory. An absent row is zeros throughout, and adds nothing.
template <class T, class X, class Statistics, int kVecs>
struct RowInputs {
  Elements<T> grad_output[kVecs];
  Elements<T, X> input[kVecs];
  typename Statistics::template Saved<Compute<T>> saved;
};

// The weight of a thread's columns, which stays in registers if it finds room: three vectors of it do not.
template <class T, int kVecs, class Part>
class ThreadWeight {
  using A = Compute<T>;
  static constexpr bool kStays = kVecs <= 2;

 public:
  __device__ ThreadWeight(const SharedParameters<T, 1>& shared, const Part& part) : shared_(shared), part_(part) {
    if constexpr (kStays) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v) read(v, kept_[v]);
    }
  }

  __device__ void operator()(int v, A (&w)[1][kVec<T>]) const {
    if constexpr (kStays) {
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) w[0][i] = kept_[v][0][i];
    } else {
      read(v, w);
    }
  }

 private:
  __device__ void read(int v, A (&w)[1][kVec<T>]) const {
    shared_.with_type([&](auto type) { shared_.template read<Part::kStep>(type, part_.column(v), w); });
  }

  const SharedParameters<T, 1>& shared_;
  const Part& part_;
  A kept_[kStays ? kVecs : 1][1][kVec<T>];
};

// What is added to a row's gradient: that of the sum which the row is, if there is one. It is asked for at once, while
// the row's sums are waited for; or vector by vector, where there are no registers for all of it.
template <class T, class Source, int kVecs, class Part>
class AddedGradient {
  using X = typename Source::Element;
  static constexpr bool kAtOnce = Part::kStep == 1 && std::is_same_v<T, X>;

 public:
  __device__ AddedGradient(const RowNormBackward& op, const Part& part, int64_t row, bool exists)
      : op_(op), part_(part), row_(row), exists_(exists) {
    if constexpr (Source::kAdds && kAtOnce) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v) load(v);
    }
  }

  __device__ void begin(int v) {
    if constexpr (Source::kAdds && !kAtOnce) load(v);
  }
  __device__ void add_to(Compute<T>& dx, int v, int i) const {
    if constexpr (Source::kAdds) dx += of_sum_[v][i];
  }

 private:
  __device__ void load(int v) {
    if (op_.grad_sum && exists_) of_sum_[v] = part_.load(static_cast<const X*>(op_.grad_sum) + row_ * op_.columns, v);
  }

  const RowNormBackward& op_;
  const Part& part_;
  int64_t row_;
  bool exists_;
  Elements<T, X> of_sum_[kVecs] = {};
};

// What a thread does with its part of a row.
template <class T, class Statistics, class Source, int kVecs, class Part>
struct ThreadRows {
  using A = Compute<T>;
  using X = typename Source::Element;
  using Inputs = RowInputs<T, X, Statistics, kVecs>;
  using Weight = ThreadWeight<T, kVecs, Part>;
  using Added = AddedGradient<T, Source, kVecs, Part>;
  using Gradient = typename Statistics::template Gradient<A>;
  static constexpr bool kAligned = Part::kStep == 1;
  static constexpr bool kHasBias = Statistics::kParameters == 2;

  const RowNormBackward& op;
  const BackwardPlan<T>& plan;
  const PartialSums& partials;
  const Part& part;

  __device__ Inputs load(int64_t row, bool exists) const {
    Inputs in{};
    if (!exists) return in;
    part.load(static_cast<const T*>(op.grad_output) + plan.grad_output[row], in.grad_output);
    part.load(static_cast<const X*>(op.input) + plan.input[row], in.input);
    in.saved = in.saved.load(op, row);
    return in;
  }

  // Its share of the sums that the gradient of a row takes.
  template <int kCount>
  __device__ void sum(const Inputs& in, const Weight& weight, A (&sums)[kCount]) const {
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      A x[kVec<T>], w[1][kVec<T>];
      weight(v, w);
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) x[i] = in.saved.xhat(in.input[v][i]);
      if (!Statistics::kKeepsZeros && !part.is_whole(v)) {
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i)
          if (kAligned || part.column(v, i) >= part.end()) x[i] = 0;
      }
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) Gradient::add(in.grad_output[v][i] * w[0][i], x[i], sums);
    }
  }

  // The gradient of a row, which is stored if the row exists, and what the row adds to the parameters'.
  __device__ void map(int64_t row, bool exists, Inputs& in, const Weight& weight, const Gradient& gradient,
                      Added& added, ParameterSums<T, kVecs>& sums) const {
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      in.grad_output[v].forget_widened();
      in.input[v].forget_widened();
      A dx[kVec<T>], w[1][kVec<T>];
      weight(v, w);
      added.begin(v);
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) {
        // Once more, rather than kept: registers are what limits the length of a row here.
        const A dy = in.grad_output[v][i], x = gradient.corrected(in.saved.xhat(in.input[v][i]));
        dx[i] = gradient(dy * w[0][i], x) * in.saved.rstd;
        added.add_to(dx[i], v, i);
        sums.weight[v][i] = fma(dy, x, sums.weight[v][i]);
        if constexpr (kHasBias) sums.bias[v][i] += dy;
      }
      if (op.grad_input && exists) part.store(static_cast<T*>(op.grad_input) + row * op.columns, v, dx);
      if constexpr (!std::is_same_v<T, X>) {
        if (op.grad_residual && exists) part.store(static_cast<X*>(op.grad_residual) + row * op.columns, v, dx);
      }
    }
  }
};

// values, summed over the rows of a block in a fixed order, into one part of `partials`, at `to`.
template <class T, int kLanes, int kVecs, class Part, class A>
__device__ void store_partials(const PartialSums& partials, void* to, int64_t index, int64_t columns, const Part& part,
                               bool aligned, A (&values)[kVecs][kVec<T>], A* shared) {
  constexpr int kGroup = kLanes < kWarpSize ? kWarpSize : kLanes, kGroups = kRowThreads<kLanes> / kGroup;
  if constexpr (kLanes < kWarpSize) {
#pragma unroll
    for (int v = 0; v < kVecs; ++v) strided_warp_sum(values[v], kLanes);  // the rows that share a warp
  }
  const int group = threadIdx.x / kGroup;
  const bool first_row = threadIdx.x % kGroup < kLanes;
  A* const mine = shared + part.lane() * (kVecs * kVec<T>);
#pragma unroll 1
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
    store_part<T, Part::kStep>(partials, to, index, columns, part.column(v), part.end(), aligned, values[v]);
}

// Blocks that fit on an SM at once, by the registers they need: 85 a thread for one vector of each input, 128 for two,
// 168 for three.
template <int kLanes, int kVecs>
constexpr int kBackwardBlocks = (kVecs == 1   ? 768
                                 : kVecs == 2 ? 512
                                              : 384) /
                                kRowThreads<kLanes>;

// Whether the next row is on its way while a row is computed. Single elements on their way need a register each, and a
// sum's gradient takes registers of its own: too many for the next row's, too.
template <class Source, bool kAligned>
constexpr bool kPrefetchBackward = kAligned && !Source::kAdds;

template <class T, class Statistics, class Source, int kLanes, int kVecs, bool kCluster, bool kAligned>
__global__ void __launch_bounds__(kRowThreads<kLanes>, kBackwardBlocks<kLanes, kVecs>)
    row_norm_backward_kernel(const RowNormBackward op, const BackwardPlan<T> plan, const PartialSums partials) {
  follow();
  using Part = RowPart<T, kLanes, kVecs, kCluster, kAligned>;
  using Rows = ThreadRows<T, Statistics, Source, kVecs, Part>;
  using A = typename Rows::A;
  using Sum = GroupSum<A, Statistics::kBackwardSums, kRowThreads<kLanes>, kLanes, kCluster>;
  constexpr bool kPrefetch = kPrefetchBackward<Source, kAligned>;
  constexpr int kGather = Part::kRows > 1 ? kLanes * kVecs * kVec<T> : 0;
  SHARED_ARRAY(A, shared, Sum::kSharedValues > kGather ? Sum::kSharedValues : kGather);
  DYNAMIC_SHARED(char, parameters);
  Sum group_sum(shared);
  const SharedParameters<T, 1> weights(parameters, op.param_dtype, plan.capacity, plan.weight_offset);

  const Part part(op.columns);
  const Rows rows{op, plan, partials, part};
  const int64_t line = line_of_block(), first = line * op.lines.rows_per_line, end = first + op.lines.rows_per_line;
  if (first >= op.rows) return;
  const int64_t row_step = int64_t{plan.blocks} * Part::kRows;
  int64_t row = first + part.row();
  typename Rows::Inputs next;
  if constexpr (kPrefetch) next = rows.load(row, row < end);

  weights.fetch({plan.weight[line], nullptr}, op.columns);
  __syncthreads();
  const typename Rows::Weight weight(weights, part);

  for (int of_block = 0; of_block < plan.parts_of_block; ++of_block) {
    ParameterSums<T, kVecs> parameter_sums;
    // All threads go round as often as the block's first row does: they meet at barriers.
    for (int left = kRowsOfPart; left > 0 && row - part.row_of_block() < end; --left, row += row_step) {
      opaque(row);
      const bool exists = row < end;
      auto in = kPrefetch ? next : rows.load(row, exists);
      if constexpr (kPrefetch) next = rows.load(row + row_step, row + row_step < end);

      A sums[Statistics::kBackwardSums] = {};
      rows.sum(in, weight, sums);
      typename Rows::Added added(op, part, row, exists);
      group_sum(sums);
      const auto gradient = Rows::Gradient::of(sums, Statistics::is_centered(op), plan.inverse_n);
      rows.map(row, exists, in, weight, gradient, added, parameter_sums);
    }

    if constexpr (Part::kRows > 1) __syncthreads();  // the exchange's memory now gathers the rows' sums
    const int64_t index = (line * plan.blocks + part.block_of_row()) * plan.parts_of_block + of_block;
    void* to = partials.weight;
#pragma unroll 1  // the bias by the same code
    for (int k = 0; k < Statistics::kParameters; ++k, to = partials.bias) {
      auto& sums = parameter_sums.weight;
      if (to) store_partials<T, kLanes, kVecs>(partials, to, index, op.columns, part, kAligned, sums, shared);
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i) sums[v][i] = parameter_sums.bias[v][i];
      }
    }
  }
  group_sum.leave();
  group_sum.finish();
}

// ------------------------------------------------------------------------------------------------ launch configuration
template <class T, class Statistics, class Source, RowLaunch kLaunch, bool kAligned>
bool launch_row_norm_backward(const RowNormBackward& op, Run& run) {
  constexpr int kLanes = kLaunch.lanes, kVecs = kLaunch.vecs, kThreads = kRowThreads<kLanes>,
                kCluster = kLaunch.cluster;
  if (kCluster > 1 && !run.device.has_clusters) return false;
  constexpr int kRows = kThreads / kLanes;
  const int64_t fit = run.device.sm_count * kBackwardBlocks<kLanes, kVecs> / kCluster;
  const int64_t lines = lines_of(op), groups_of_line = ceil_div(op.lines.rows_per_line, kRows);
  const int64_t blocks = std::min(std::max(int64_t{1}, fit / lines), groups_of_line);
  const int64_t parts_of_block = ceil_div(groups_of_line, blocks * kRowsOfPart), parts = blocks * parts_of_block;
  const PartialSums partials = take_partial_sums<T>(op, run, parts, kAligned);
  const int64_t capacity = int64_t{kCluster} * kLanes * kVecs * kVec<T>;  // weights also where a row has ended
  const BackwardPlan<T> plan{{op.grad_output_strides, op.rows},
                             {op.input_strides, op.rows},
                             weights_of<T>(op),
                             grid_of(blocks),
                             static_cast<int>(parts_of_block),
                             capacity,
                             1 / static_cast<Compute<T>>(op.columns),
                             static_cast<Compute<T>>(op.weight_offset)};
  run.launch(row_norm_backward_kernel<T, Statistics, Source, kLanes, kVecs, (kCluster > 1), kAligned>,
             {.grid = grid_of_lines(blocks * kCluster, lines),
              .block = kThreads,
              .shared_bytes = static_cast<size_t>(shared_parameter_bytes<T>(op.param_dtype, capacity)),
              .cluster = kCluster},
             op, plan, partials);
  launch_sum_partials<T>(op, run, partials, parts);
  return true;
}

template <class T, class Statistics, class Source, bool kAligned>
bool row_norm_backward(const RowNormBackward& op, Run& run) {
  return choose_launch<backward_launches<T, Source, kAligned>()>(
      ceil_div(op.columns, kVec<T>),
      [&]<RowLaunch kLaunch>() { return launch_row_norm_backward<T, Statistics, Source, kLaunch, kAligned>(op, run); });
}

template <class T>
bool ring_backward(const RowNormBackward& op, Run& run);  // ring_backward.cu; whether it has launched its kernel

// Of rows of S. Those of float32 beside a half grad_output have kernels of their own if they are aligned; else they are
// treated as long. float64 is rare, and its elements move as well one by one.
template <class T, class S>
void row_norm_backward(const RowNormBackward& op, Run& run) {
  constexpr bool kMixed = !std::is_same_v<T, S>;
  const bool aligned = op.columns % kVec<T> == 0 &&
                       is_aligned(op.grad_output, op.grad_sum, op.input, op.grad_input, op.grad_residual) &&
                       RowPlaces(op.grad_output_strides, op.rows).is_aligned<T>() &&
                       RowPlaces(op.input_strides, op.rows).is_aligned<S>();
  bool launched = false;
  if (sizeof(T) == 8 || !aligned) {
    if constexpr (!kMixed) launched = row_norm_backward<T, Either, SumRows<S>, false>(op, run);
  } else if constexpr (sizeof(T) < 8) {
    const bool centered = op.statistics == RowStatistics::centered;
    if constexpr (!kMixed) launched = ring_backward<T>(op, run);
    if (launched) return;
    if (kMixed || op.grad_sum || (!centered && op.grad_bias))
      launched = row_norm_backward<T, Either, SumRows<S>, true>(op, run);
    else if (centered)
      launched = row_norm_backward<T, Centered, InputRows<T>, true>(op, run);
    else
      launched = row_norm_backward<T, Uncentered, InputRows<T>, true>(op, run);
  }
  if (!launched) long_row_norm_backward<T, S>(op, run, aligned);
}

}  // namespace normext::cuda
