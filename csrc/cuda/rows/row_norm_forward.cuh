// row_norm_forward.cuh -- the norms of rows forward: a row is read once, and stays in registers until it is written.
//
//   row_norm_forward_kernel   rows of up to 4096 vectors of 16 bytes, unaligned ones of up to 1024, if their parameters
//                             find room in shared memory
//   row_norm_long.cuh         longer rows
//
// A block holds weight and bias in shared memory and goes through a few rows, the next row's vectors on their way while
// the current one is computed, where there are registers for them. kLanes threads share a row, each with kVecs vectors
// of it. Statistics are taken in passes over the registers: see row_statistics.cuh. Who computes what depends on the
// row's length alone, and how it is loaded on its alignment, so a row's result does not depend on the batch it is in.
#pragma once
#include "cuda/elements/launch.cuh"
#include "cuda/elements/numerics.cuh"
#include "cuda/elements/reduce.cuh"
#include "cuda/rows/row.cuh"
#include "cuda/rows/row_launches.cuh"
#include "cuda/rows/row_norm_long.cuh"
#include "cuda/rows/row_statistics.cuh"
#include "cuda/rows/shared_parameters.cuh"
#include "ops/row_norm.h"

namespace normext::cuda {

// A row's vectors. Half types stay packed, and are widened anew in every pass: that takes half of the registers.
template <class T, int kVecs, bool kAligned, class Part>
struct Row {
  using A = Compute<T>;
  Part part;
  Pack<T> packs[kVecs] = {};
  // The row's first value, loaded for those who ask for it. Widened where it is used: here, it would be waited for.
  T first{};

  __device__ explicit Row(const Part& place) : part(place) {}
  __device__ void load(const T* row) {
    first = __ldg(row);
    part.load(row, packs);
  }

  // x * scale - about, for a vector's values x: exact where the two are near, since the scale is a power of two.
  __device__ void differences(int v, A scale, A about, A (&out)[kVec<T>]) {
    if constexpr (sizeof(T) == 2) opaque(packs[v].words);
#pragma unroll
    for (int i = 0; i < kVec<T>; ++i) out[i] = fma(packs[v][i], scale, -about);
  }

  // totals = sum of f(difference) over this thread's values, pairwise within a vector: short sums round less.
  template <int kCount, class F>
  __device__ void sum(A scale, A about, const F& f, A (&totals)[kCount]) {
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      A d[kVec<T>], terms[kVec<T>][kCount];
      differences(v, scale, about, d);
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) {
        f(d[i], terms[i]);
        if constexpr (!kAligned) {
#pragma unroll
          for (int k = 0; k < kCount; ++k) terms[i][k] = part.column(v, i) < part.end() ? terms[i][k] : A(0);
        }
      }
#pragma unroll
      for (int half = kVec<T> / 2; half > 0; half /= 2) {
#pragma unroll
        for (int i = 0; i < half; ++i) {
#pragma unroll
          for (int k = 0; k < kCount; ++k) terms[i][k] += terms[i + half][k];
        }
      }
      const bool exists = part.column(v) < part.end();
#pragma unroll
      for (int k = 0; k < kCount; ++k) totals[k] = (v == 0 ? A(0) : totals[k]) + (exists ? terms[0][k] : A(0));
    }
  }
};

// The statistics of a row: of values * scale, where the values' squares cannot be summed as they are. Of a row that
// does not exist: anything.
template <class OfRow, bool kShareBarriers, class ARow, class GroupSum, class A>
__device__ OfRow row_statistics(ARow& row, bool exists, A inverse_n, GroupSum& group_sum) {
  OfRow s;
  for (bool again = false;; again = true) {
    const A scale = s.measure(row, inverse_n, group_sum);
    if (again) return s;
    s.scale = scale;
    // Rows that share a warp, or a block's barriers, go round together, since all must take part. A scale of 1 changes
    // nothing.
    const bool wants = exists && s.scale != 1;
    if (!(kShareBarriers ? __syncthreads_or(wants) : __any_sync(0xffffffffu, wants))) return s;
  }
}

// Whether the next row is on its way while a row is computed. Two blocks of 512 threads on an SM, which have no
// registers for it, do better than one that has, and a block of 1024 has none either; single elements on their way need
// a register each.
template <int kLanes, int kVecs, bool kAligned>
constexpr bool kPrefetch = kAligned && kLanes * kVecs < 2048;

// Blocks that fit on an SM at once, by the registers they need: 64 a thread for two vectors, or for four where nothing
// else is on its way, 80 for four; unaligned, 128.
template <int kLanes, int kVecs, bool kAligned>
constexpr int kForwardBlocks = (!kAligned                                           ? 512
                                : !kPrefetch<kLanes, kVecs, kAligned> || kVecs <= 2 ? 1024
                                                                                    : 768) /
                               kRowThreads<kLanes>;

// And those that the compiler has to leave room for: fewer, where half types would spill; more, where three vectors of
// float64 find room in 64 registers.
template <class T, int kLanes, int kVecs, bool kAligned>
constexpr int kForwardBounds =
    kComputesInPairs && sizeof(T) == 2 && kVecs > 1 && kLanes <= 512 ? 512 / kRowThreads<kLanes>
    : !kComputesInPairs && sizeof(T) == 8 && kVecs == 3 && kAligned  ? 1024 / kRowThreads<kLanes>
                                                                     : kForwardBlocks<kLanes, kVecs, kAligned>;

template <class T, class Statistics, int kLanes, int kVecs, bool kAligned>
__global__ void __launch_bounds__(kRowThreads<kLanes>, kForwardBounds<T, kLanes, kVecs, kAligned>)
    row_norm_forward_kernel(const RowNormForward op, const int rounds, const int64_t capacity,
                            const Compute<T> inverse_n, const Compute<T> weight_offset) {
  using A = Compute<T>;
  using Part = RowPart<T, kLanes, kVecs, false, kAligned>;
  using Sum = GroupSum<A, Statistics::kForwardSums, kRowThreads<kLanes>, kLanes, false>;
  SHARED_ARRAY(A, exchange, Sum::kSharedValues);
  DYNAMIC_SHARED(char, shared);
  Sum group_sum(exchange);
  const SharedParameters<T, Statistics::kParameters> parameters(shared, op.param_dtype, capacity, weight_offset);

  const Part part(op.columns);
  const auto load = [&](int64_t index) {
    Row<T, kVecs, kAligned, Part> row(part);
    if (index < op.rows) row.load(static_cast<const T*>(op.input) + index * op.columns);
    return row;  // a row too many is computed along, as zeros: its lanes are needed
  };
  int64_t index = static_cast<int64_t>(blockIdx.x) * rounds * Part::kRows + part.row_of_block();
  auto next = load(index);
  parameters.fetch({op.weight, op.bias}, op.columns);
  __syncthreads();

  for (int left = rounds; left > 0 && index - part.row_of_block() < op.rows; --left, index += Part::kRows) {
    opaque(index);
    auto row = next;
    const auto load_next = [&] { next = load(left > 1 ? index + Part::kRows : op.rows); };
    if constexpr (kPrefetch<kLanes, kVecs, kAligned>) load_next();

    const bool exists = index < op.rows;
    constexpr bool kShareBarriers = kLanes > kWarpSize && Part::kRows > 1;
    const auto s =
        row_statistics<typename Statistics::template OfRow<A>, kShareBarriers>(row, exists, inverse_n, group_sum);
    const A scaled_rstd = s.scaled_rstd(static_cast<A>(op.eps));
    const auto normalization = s.normalization(scaled_rstd);
    if (exists && part.is_first_of_row()) s.store(op, index, scaled_rstd);
    T* const output = static_cast<T*>(op.output) + index * op.columns;
    parameters.with_type([&]<class P>(Type<P> type) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        if (!exists || part.column(v) >= part.end()) break;
        A d[kVec<T>], weight_bias[Statistics::kParameters][kVec<T>], y[kVec<T>];
        row.differences(v, s.scale, normalization.center, d);
        parameters.template read<Part::kStep>(type, part.column(v), weight_bias);
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i) y[i] = Statistics::affine(normalization.of_difference(d[i]), weight_bias, i);
        part.store(output, v, y);
      }
    });
    if constexpr (!kPrefetch<kLanes, kVecs, kAligned>) load_next();
  }
}

// ------------------------------------------------------------------------------------------------ launch configuration
// Returns false if the parameters find no room in shared memory.
template <class T, class Statistics, RowLaunch kLaunch, bool kAligned>
bool launch_row_norm_forward(const RowNormForward& op, Run& run) {
  constexpr int kLanes = kLaunch.lanes, kVecs = kLaunch.vecs, kThreads = kRowThreads<kLanes>;
  const int64_t capacity = kAligned ? op.columns : int64_t{kLanes} * kVecs * kVec<T>;
  const int64_t bytes = Statistics::kParameters * shared_parameter_bytes<T>(op.param_dtype, capacity);
  if (bytes + kExchangeBytes > run.device.max_shared_bytes) return false;
  const int64_t fit = std::min<int64_t>(kForwardBlocks<kLanes, kVecs, kAligned>,
                                        run.device.max_shared_bytes / (bytes + kExchangeBytes));
  const int64_t groups = ceil_div(op.rows, kThreads / kLanes);
  const int64_t rounds = std::min<int64_t>(kLaunch.rounds, ceil_div(groups, run.device.sm_count * fit));
  run.launch(row_norm_forward_kernel<T, Statistics, kLanes, kVecs, kAligned>,
             {.grid = grid_of(ceil_div(groups, rounds)), .block = kThreads, .shared_bytes = static_cast<size_t>(bytes)},
             op, static_cast<int>(rounds), capacity, 1 / static_cast<Compute<T>>(op.columns),
             static_cast<Compute<T>>(op.weight_offset));
  return true;
}

template <class T, class Statistics, bool kAligned>
void row_norm_forward(const RowNormForward& op, Run& run) {
  const bool launched = choose_launch<forward_launches<T, Statistics, kAligned>()>(
      ceil_div(op.columns, kVec<T>),
      [&]<RowLaunch kLaunch>() { return launch_row_norm_forward<T, Statistics, kLaunch, kAligned>(op, run); });
  if (!launched) long_row_norm_forward<T, Statistics>(op, run, kAligned);
}

template <class T, class Statistics>
void row_norm_forward(const RowNormForward& op, Run& run) {
  if (op.columns % kVec<T> == 0 && is_aligned(op.input, op.output, op.weight, op.bias))
    row_norm_forward<T, Statistics, true>(op, run);
  else
    row_norm_forward<T, Statistics, false>(op, run);
}

}  // namespace normext::cuda
