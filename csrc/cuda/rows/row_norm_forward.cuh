// row_norm_forward.cuh -- the norms of rows forward: a row is read once, and stays in registers until it is written.
//
//   row_norm_forward_kernel   rows of up to 4096 vectors of 16 bytes, unaligned ones of up to 1024, if their parameters
//                             find room in shared memory; with a residual, aligned rows of up to 2048 vectors, or 1024
//                             with one of float32 beside a half input
//   ring_forward.cuh          instead of it from sm_90 on, for many of the longer rows
//   row_norm_long.cuh         longer rows; before them or the kernel above, add_rows_kernel, for other sums
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
#include "cuda/rows/row_places.cuh"
#include "cuda/rows/row_sources.cuh"
#include "cuda/rows/row_statistics.cuh"
#include "cuda/rows/shared_parameters.cuh"
#include "ops/row_norm.h"

namespace normext::cuda {

// A row's vectors. Half types stay packed, and are widened anew in every pass: that takes half of the registers.
template <class T, class Source, int kVecs, bool kAligned, class Part>
struct Row {
  using A = Compute<T>;
  using X = typename Source::Element;
  Part part;
  Elements<T, X> values[kVecs] = {};
  // The row's first value, loaded for those who ask for it. Widened where it is used: here, it would be waited for.
  X first{};

  __device__ explicit Row(const Part& place) : part(place) {}
  __device__ void load(const X* row) {
    first = __ldg(row);
    part.load(row, values);
  }

  // x * scale - about, for a vector's values x: exact where the two are near, since the scale is a power of two.
  __device__ void differences(int v, A scale, A about, A (&out)[kVec<T>]) {
    values[v].forget_widened();
#pragma unroll
    for (int i = 0; i < kVec<T>; ++i) out[i] = fma(values[v][i], scale, -about);
  }

  // totals = sum of f(difference) over this thread's values.
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
      sum_pairwise(terms);
      const bool exists = part.column(v) < part.end();
#pragma unroll
      for (int k = 0; k < kCount; ++k) totals[k] = (v == 0 ? A(0) : totals[k]) + (exists ? terms[0][k] : A(0));
    }
  }
};

// A row as it comes from memory: it is what it will be, or the input and the residual that are added.
template <class T, class Source, int kVecs, class ARow>
struct LoadedRow {
  ARow row;

  __device__ explicit LoadedRow(const ARow& empty) : row(empty) {}
  __device__ void load(const RowNormForward& op, int64_t input, int64_t) {
    row.load(static_cast<const T*>(op.input) + input);
  }
  __device__ ARow take(const RowNormForward&, int64_t, bool) const { return row; }
};
template <class T, class S, int kVecs, class ARow>
struct LoadedRow<T, SumRows<S>, kVecs, ARow> {
  ARow row;
  Elements<T> input[kVecs] = {};
  Elements<T, S> residual[kVecs] = {};
  T first_input{};
  S first_residual{};

  __device__ explicit LoadedRow(const ARow& empty) : row(empty) {}
  __device__ void load(const RowNormForward& op, int64_t input_at, int64_t residual_at) {
    const T* const from = static_cast<const T*>(op.input) + input_at;
    first_input = __ldg(from);
    row.part.load(from, input);
    if (!op.residual) return;
    const S* const other = static_cast<const S*>(op.residual) + residual_at;
    first_residual = __ldg(other);
    row.part.load(other, residual);
  }
  // Stores the sum, if the row exists and there is a residual; where there is none, zeros stand for it.
  __device__ ARow take(const RowNormForward& op, int64_t index, bool exists) {
    ARow sum = row;
    sum.first = narrow<S>(widen(first_input) + widen(first_residual));
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      Compute<S> values[kVec<S>];
#pragma unroll
      for (int p = 0; p < kVec<T> / kVec<S>; ++p) {
#pragma unroll
        for (int i = 0; i < kVec<S>; ++i) values[i] = input[v][p * kVec<S> + i] + residual[v][p * kVec<S> + i];
        sum.values[v].packs[p] = Pack<S>::of(values);
      }
      if (op.sum && exists) row.part.store(static_cast<S*>(op.sum) + index * op.columns, v, sum.values[v]);
    }
    return sum;
  }
};

// Whether the next row is on its way while a row is computed. Two blocks of 512 threads on an SM, which have no
// registers for it, do better than one that has, and a block of 1024 has none either; single elements on their way need
// a register each.
template <class Source, int kLanes, int kVecs, bool kAligned>
constexpr bool kPrefetch = kAligned && kLanes * kVecs < 2048;

// Blocks that fit on an SM at once, by the registers they need: 64 a thread for two vectors, or for four where nothing
// else is on its way, 80 for four; unaligned, and with a residual, 128.
template <class Source, int kLanes, int kVecs, bool kAligned>
constexpr int kForwardThreads = kLanes > 512                                                ? 1024
                                : !kAligned || Source::kAdds                                ? 512
                                : !kPrefetch<Source, kLanes, kVecs, kAligned> || kVecs <= 2 ? 1024
                                                                                            : 768;
template <class Source, int kLanes, int kVecs, bool kAligned>
constexpr int kForwardBlocks = kForwardThreads<Source, kLanes, kVecs, kAligned> / kRowThreads<kLanes>;

// And those that the compiler has to leave room for: fewer, where half types would spill.
template <class T, class Source, int kLanes, int kVecs, bool kAligned, bool kPairs = kComputesInPairs>
constexpr int kForwardBounds =
    kPairs && sizeof(T) == 2 && kVecs > 1 && kLanes <= 512 ? 512 / kRowThreads<kLanes>
                                                           : kForwardBlocks<Source, kLanes, kVecs, kAligned>;

// How the rows of a launch are shared out, and where they lie.
template <class T>
struct ForwardPlan {
  RowPlaces input, residual;
  Lines weight, bias;
  int rounds;        // of a block
  int64_t capacity;  // columns that there is shared memory for
  Compute<T> inverse_n, weight_offset;
};

template <class T, class Statistics, class Source, int kLanes, int kVecs, bool kAligned>
__global__ void __launch_bounds__(kRowThreads<kLanes>, kForwardBounds<T, Source, kLanes, kVecs, kAligned>)
    row_norm_forward_kernel(const RowNormForward op, const ForwardPlan<T> plan) {
  using A = Compute<T>;
  using Part = RowPart<T, kLanes, kVecs, false, kAligned>;
  using ARow = Row<T, Source, kVecs, kAligned, Part>;
  using Sum = GroupSum<A, Statistics::kForwardSums, kRowThreads<kLanes>, kLanes, false>;
  SHARED_ARRAY(A, exchange, Sum::kSharedValues);
  DYNAMIC_SHARED(char, shared);
  Sum group_sum(exchange);
  const SharedParameters<T, Statistics::kParameters> parameters(shared, op.param_dtype, plan.capacity,
                                                                plan.weight_offset);

  const Part part(op.columns);
  const int64_t line = line_of_block(), before = int64_t{blockIdx.x} * plan.rounds * Part::kRows;
  const int64_t first = line * op.lines.rows_per_line + before;
  if (first >= op.rows) return;
  int left = static_cast<int>(min(int64_t{plan.rounds} * Part::kRows, op.lines.rows_per_line - before));
  int64_t index = first + part.row_of_block();
  const auto load = [&](int64_t at, bool exists) {
    LoadedRow<T, Source, kVecs, ARow> row{ARow(part)};
    if (exists) row.load(op, plan.input[at], Source::kAdds ? plan.residual[at] : 0);
    return row;  // a row too many is computed along, as zeros: its lanes are needed
  };
  auto next = load(index, part.row_of_block() < left);
  parameters.fetch({plan.weight[line], plan.bias[line]}, op.columns);
  __syncthreads();

  for (; left > 0; left -= Part::kRows, index += Part::kRows) {
    opaque(index);
    const bool exists = part.row_of_block() < left;
    auto row = next.take(op, index, exists);
    const auto load_next = [&] { next = load(index + Part::kRows, part.row_of_block() + Part::kRows < left); };
    if constexpr (kPrefetch<Source, kLanes, kVecs, kAligned>) load_next();

    constexpr bool kShareBarriers = kLanes > kWarpSize && Part::kRows > 1;
    constexpr bool kPacked = kAligned && sizeof(typename Source::Element) == 2;
    const auto s = row_statistics<typename Statistics::template OfRow<A>, kShareBarriers, kPacked>(
        row, exists, Statistics::is_centered(op), plan.inverse_n, group_sum);
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
    if constexpr (!kPrefetch<Source, kLanes, kVecs, kAligned>) load_next();
  }
}

// ------------------------------------------------------------------------------------------------ launch configuration
// Returns false if the parameters find no room in shared memory.
template <class T, class Statistics, class Source, RowLaunch kLaunch, bool kAligned>
bool launch_row_norm_forward(const RowNormForward& op, Run& run) {
  constexpr int kLanes = kLaunch.lanes, kVecs = kLaunch.vecs, kThreads = kRowThreads<kLanes>, kRows = kThreads / kLanes;
  const int64_t capacity = kAligned ? op.columns : int64_t{kLanes} * kVecs * kVec<T>;
  const int64_t bytes = Statistics::kParameters * shared_parameter_bytes<T>(op.param_dtype, capacity);
  if (bytes + kExchangeBytes > run.device.max_shared_bytes) return false;
  const int64_t fit = std::min<int64_t>(kForwardBlocks<Source, kLanes, kVecs, kAligned>,
                                        run.device.max_shared_bytes / (bytes + kExchangeBytes));
  const int64_t lines = lines_of(op), groups_of_line = ceil_div(op.lines.rows_per_line, kRows);
  const int64_t rounds =
      std::min({int64_t{kLaunch.rounds}, groups_of_line, ceil_div(lines * groups_of_line, run.device.sm_count * fit)});
  const int64_t blocks = ceil_div(groups_of_line, rounds);
  const ForwardPlan<T> plan{{op.input_strides, op.rows},
                            {op.residual_strides, op.rows},
                            weights_of<T>(op),
                            biases_of<T>(op),
                            static_cast<int>(rounds),
                            capacity,
                            1 / static_cast<Compute<T>>(op.columns),
                            static_cast<Compute<T>>(op.weight_offset)};
  run.launch(row_norm_forward_kernel<T, Statistics, Source, kLanes, kVecs, kAligned>,
             {.grid = grid_of_lines(blocks, lines),
              .block = kThreads,
              .shared_bytes = static_cast<size_t>(bytes),
              .alone = true},
             op, plan);
  return true;
}

template <class T, class Statistics, class Source, bool kAligned>
bool row_norm_forward(const RowNormForward& op, Run& run) {
  return choose_launch<forward_launches<T, Source, kAligned>()>(
      ceil_div(op.columns, kVec<T>),
      [&]<RowLaunch kLaunch>() { return launch_row_norm_forward<T, Statistics, Source, kLaunch, kAligned>(op, run); });
}

template <class T>
bool ring_forward(const RowNormForward& op, Run& run);  // ring_forward.cu; whether it has launched its kernel

// Of the input. float64 is rare, and its elements move as well one by one.
template <class T>
void row_norm_forward(const RowNormForward& op, Run& run) {
  const bool aligned = op.columns % kVec<T> == 0 && is_aligned(op.input, op.output) &&
                       RowPlaces(op.input_strides, op.rows).is_aligned<T>();
  bool launched = false;
  if (sizeof(T) == 8 || !aligned) {
    launched = row_norm_forward<T, Either, InputRows<T>, false>(op, run);
  } else if constexpr (sizeof(T) < 8) {
    if (ring_forward<T>(op, run))
      launched = true;
    else if (op.statistics == RowStatistics::uncentered && op.bias)
      launched = row_norm_forward<T, Either, SumRows<T>, true>(op, run);
    else if (op.statistics == RowStatistics::centered)
      launched = row_norm_forward<T, Centered, InputRows<T>, true>(op, run);
    else
      launched = row_norm_forward<T, Uncentered, InputRows<T>, true>(op, run);
  }
  if (!launched) long_row_norm_forward<T, T>(op, run, aligned);
}

// Of input + residual, of type S. Where there is no kernel that does both, one stores the sum, which others then read.
template <class T, class S>
void add_row_norm_forward(const RowNormForward& op, Run& run) {
  const bool aligned = op.columns % kVec<T> == 0 && is_aligned(op.input, op.residual, op.output, op.sum) &&
                       RowPlaces(op.input_strides, op.rows).is_aligned<T>() &&
                       RowPlaces(op.residual_strides, op.rows).is_aligned<S>();
  if constexpr (sizeof(T) < 8) {
    if (aligned && (ring_forward<T>(op, run) || row_norm_forward<T, Either, SumRows<S>, true>(op, run))) return;
  }
  launch_add_rows<T, S>(op, run, aligned);
  RowNormForward of_sum = op;
  of_sum.input = op.sum;
  of_sum.input_strides = {op.rows, 0, op.columns};
  of_sum.residual = of_sum.sum = nullptr;
  if constexpr (std::is_same_v<T, S>)
    row_norm_forward<T>(of_sum, run);
  else
    long_row_norm_forward<T, S>(of_sum, run, aligned);
}

}  // namespace normext::cuda
