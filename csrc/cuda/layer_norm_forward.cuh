// layer_norm_forward.cuh -- LayerNorm forward: a row is read once, and stays in registers until it is written.
//
// kLanes threads share a row, each with kVecs vectors of it; short rows share a block, and the longest are spread over
// the blocks of a cluster. The variance is taken in two passes over the registers. Who computes what depends on the
// row's length alone, and how it is loaded on its alignment, so a row's result does not depend on the batch it is in.
#pragma once
#include "launch.cuh"
#include "layer_norm_long.cuh"
#include "numerics.cuh"
#include "ops/layer_norm.h"
#include "reduce.cuh"
#include "row.cuh"

namespace normext::cuda {

// A row's values in registers.
template <class T, int kVecs, class Part>
struct Row {
  using A = Compute<T>;
  Part part;
  A x[kVecs][kVec<T>];

  __device__ Row(const Part& place, const Pack<T> (&packs)[kVecs]) : part(place) {
    for_each([&](A& value, int v, int i) { value = packs[v][i]; });
  }

  // f(value, vector, index in the vector)
  template <class F>
  __device__ void for_each(const F& f) {
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) f(x[v][i], v, i);
    }
  }

  // Gives columns beyond the row's end a value. Few threads have any, so the test is one a vector.
  __device__ void fill_beyond(A value) {
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      if (part.is_whole(v)) continue;
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i)
        if (part.column(v) + i >= part.end()) x[v][i] = value;
    }
  }

  // totals = sum of f(x) over this thread's values, pairwise within a vector: short sums round less.
  template <int kCount, class F>
  __device__ void sum(const F& f, A (&totals)[kCount]) const {
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
      A terms[kVec<T>][kCount];
#pragma unroll
      for (int i = 0; i < kVec<T>; ++i) f(x[v][i], terms[i]);
#pragma unroll
      for (int half = kVec<T> / 2; half > 0; half /= 2) {
#pragma unroll
        for (int i = 0; i < half; ++i) {
#pragma unroll
          for (int k = 0; k < kCount; ++k) terms[i][k] += terms[i + half][k];
        }
      }
#pragma unroll
      for (int k = 0; k < kCount; ++k) totals[k] = v == 0 ? terms[0][k] : totals[k] + terms[0][k];
    }
  }
};

// A row's statistics, taken of values * scale.
template <class A>
struct RowStatistics {
  A scale = 1;
  A center, low;  // the mean, in two parts: center is it rounded, and what a single A cannot hold of it is in low
  A variance;

  __device__ A mean() const { return (center + low) * inverse_scale(scale); }
  __device__ A scaled_rstd(A eps) const {  // times scale: rstd
    const A back = inverse_scale(scale);
    if (scale > 1 && eps >= Squares<A>::kSmallEps) return reciprocal_root(variance * back * back + eps) * back;
    return reciprocal_root(variance + eps * scale * scale);
  }
};

// Leaves the row multiplied by the statistics' scale, and in columns beyond its end what must not be looked at. The
// shift is any value of the row: taken off first, it leaves a constant row zeros, and a far mean its last digits.
template <class Row, class GroupSum>
__device__ auto row_statistics(Row& row, typename Row::A inverse_n, typename Row::A shift, GroupSum& group_sum) {
  using A = typename Row::A;
  RowStatistics<A> s;
  for (bool again = false;; again = true) {
    shift *= s.scale;
    row.fill_beyond(shift);
    A first[1];
    row.sum([&](A v, A(&out)[1]) { out[0] = v - shift; }, first);
    group_sum(first);
    s.center = shift + first[0] * inverse_n;

    row.fill_beyond(s.center);
    A second[2];
    row.sum(
        [&](A v, A(&out)[2]) {
          out[0] = v - s.center;
          out[1] = out[0] * out[0];
        },
        second);
    group_sum(second);
    s.low = second[0] * inverse_n;
    const A variance = second[1] * inverse_n - s.low * s.low;
    s.variance = variance < 0 ? 0 : variance;  // NaN stays NaN

    if (again) return s;
    s.scale = scale_for(second[1], s.center);
    // Rows that share a warp go round together, since a shuffle wants all of its lanes. A scale of 1 changes nothing.
    if (!__any_sync(0xffffffffu, s.scale != 1)) return s;
    row.for_each([&](A& value, int, int) { value *= s.scale; });
  }
}

// Blocks that fit on an SM at once, by the registers they need: 64 a thread for two vectors, 128 for more.
template <int kLanes, int kVecs>
constexpr int kForwardBlocks = (kVecs <= 2 ? 1024 : 512) / kRowThreads<kLanes>;

template <class T, int kLanes, int kVecs, bool kCluster, bool kAligned>
__global__ void __launch_bounds__(kRowThreads<kLanes>, kForwardBlocks<kLanes, kVecs>)
    layer_norm_forward_kernel(const LayerNormForward op, const Compute<T> inverse_n) {
  using A = Compute<T>;
  using Sum = GroupSum<A, 2, kRowThreads<kLanes>, kLanes, kCluster>;
  SHARED_ARRAY(A, exchange, Sum::kSharedValues);
  Sum group_sum(exchange);

  const RowPart<T, kLanes, kVecs, kCluster> part(op.columns);
  const int64_t index = part.row();
  // A row too many is computed along, as zeros: its lanes are needed.
  const bool exists = decltype(part)::kRows == 1 || index < op.rows;
  const T* const input = static_cast<const T*>(op.input) + index * op.columns;
  Pack<T> packs[kVecs] = {};
  if (exists) part.load(input, kAligned, packs);
  Row row(part, packs);

  const auto s = row_statistics(row, inverse_n, exists ? widen(*input) : A(0), group_sum);
  group_sum.leave();
  const A scaled_rstd = s.scaled_rstd(static_cast<A>(op.eps)), low = -s.low * scaled_rstd;
  if (exists) {
    if (part.is_first_of_row()) {
      static_cast<A*>(op.mean)[index] = s.mean();
      static_cast<A*>(op.rstd)[index] = scaled_rstd * s.scale;
    }
    T* const output = static_cast<T*>(op.output) + index * op.columns;
    with_parameter_type<T>(op.param_dtype, [&]<class P>(Type<P>) {
      const P *weights = static_cast<const P*>(op.weight), *biases = static_cast<const P*>(op.bias);
#pragma unroll
      for (int v = 0; v < kVecs; ++v) {
        A weight[kVec<T>], bias[kVec<T>], y[kVec<T>];
        load_parameters(weights, part.column(v), part.end(), kAligned, A(1), weight);
        load_parameters(biases, part.column(v), part.end(), kAligned, A(0), bias);
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i) y[i] = fma(fma(row.x[v][i] - s.center, scaled_rstd, low), weight[i], bias[i]);
        store_row(output, part.column(v), part.end(), kAligned, y);
      }
    });
  }
  group_sum.finish();
}

// ------------------------------------------------------------------------------------------------ launch configuration
template <class T, int kLanes, int kVecs, bool kCluster = false>
void launch_layer_norm_forward(const LayerNormForward& op, Run& run, bool aligned, int cluster = 1) {
  const int64_t blocks = ceil_div(op.rows, RowPart<T, kLanes, kVecs, kCluster>::kRows) * cluster;
  run.launch(aligned ? layer_norm_forward_kernel<T, kLanes, kVecs, kCluster, true>
                     : layer_norm_forward_kernel<T, kLanes, kVecs, kCluster, false>,
             {.grid = grid_of(blocks), .block = kRowThreads<kLanes>, .cluster = static_cast<unsigned>(cluster)}, op,
             1 / static_cast<Compute<T>>(op.columns));
}

template <class T>
void layer_norm_forward(const LayerNormForward& op, Run& run) {
  const bool aligned = op.columns % kVec<T> == 0 && is_aligned(op.input, op.output, op.weight, op.bias);
  const auto launch = [&]<int kLanes, int kVecs>() { launch_layer_norm_forward<T, kLanes, kVecs>(op, run, aligned); };
  const int64_t vectors = ceil_div(op.columns, kVec<T>);
  // A part of a warp: no barrier. Few lanes with several vectors each, which share what is the same for a whole row
  // (short rows are a matter of instructions, not of memory), and have more loads on the way.
  if (vectors <= 4) return launch.template operator()<4, 1>();
  if (vectors <= 8) return launch.template operator()<4, 2>();
  if (vectors <= 16) return launch.template operator()<8, 2>();
  if (vectors <= 32) return launch.template operator()<8, 4>();
  if (vectors <= 64) return launch.template operator()<16, 4>();
  if (vectors <= 128) return launch.template operator()<32, 4>();
  // A block: more threads before more vectors, until a block of 512 leaves room for a second one on an SM no more.
  if (vectors <= 256) return launch.template operator()<128, 2>();
  if (vectors <= 512) return launch.template operator()<128, 4>();
  if (vectors <= 1024) return launch.template operator()<256, 4>();
  if (vectors <= 2048) return launch.template operator()<512, 4>();
  constexpr int kVecs = sizeof(T) == 2 ? 4 : 8;  // eight vectors of half types are 64 values: too many registers
  if constexpr (kVecs == 8) {
    if (vectors <= 4096) return launch.template operator()<512, 8>();
  }
  // A cluster, as small as holds the row: what a block waits for grows with the number of its peers.
  for (int cluster = 2; cluster <= kMaxCluster && run.device.has_clusters; cluster *= 2) {
    if (vectors <= cluster * 512 * kVecs)
      return launch_layer_norm_forward<T, 512, kVecs, true>(op, run, aligned, cluster);
  }
  long_layer_norm_forward<T>(op, run, aligned);
}

}  // namespace normext::cuda
