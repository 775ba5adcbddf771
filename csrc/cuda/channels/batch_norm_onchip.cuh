// batch_norm_onchip.cuh -- BatchNorm in training where a channel fits on chip: each tensor is read once.
//
// A block, or a cluster of them, takes a channel. What a thread reads it stashes in shared memory, sums, and finds
// there again when the sums of all are known. Stashes are a thread's own, so no barrier guards them.
#pragma once
#include "cuda/channels/batch_norm.cuh"
#include "cuda/channels/stash.cuh"
#include "cuda/elements/plane_walk.cuh"
#include "cuda/elements/reduce.cuh"

namespace normext::cuda {

// Blocks that are to share an SM: see on_chip(). Of 256 threads three, or two where the compiler takes more registers:
// for pairs, and for float16's conversions.
template <class T, int kThreads>
constexpr int kOnChipBlocks = kThreads == 128                                 ? 5
                              : kThreads == 512                               ? 1
                              : kComputesInPairs || std::is_same_v<T, __half> ? 2
                                                                              : 3;

template <class T, int kSize, int kThreads, bool kCluster>
__global__ void __launch_bounds__(kThreads, kOnChipBlocks<T, kThreads>)
    batch_norm_forward_onchip_kernel(const BatchNormForward op, const PlaneSlices slices) {
  using A = Compute<T>;
  using Group = GroupSum<double, 2, kThreads, kThreads, kCluster>;
  SHARED_ARRAY(double, exchange, Group::kSharedValues);
  DYNAMIC_SHARED(T, stashes);
  Group group_sum(exchange);
  Stash<T, kSize, kThreads> stash(stashes);

  const unsigned rank = kCluster ? cluster_rank() : 0;
  const int64_t channel = blockIdx.x / slices.slices;
  const PlaneWalk<kSize, kThreads> walk(slices, channel, rank);
  const T* const input = static_cast<const T*>(op.input);

  A shift[1];
  Shift<T>{input, nullptr, op.shape.plane}(channel, shift);
  const auto affine = ChannelAffine::load(Type<T>{}, op, channel);
  MomentSums<A> sum;
  sum_planes<T>(walk, Inputs<T, 1>{{input}}, sum, [&](const auto& v) { stash.push(v[0]); });
  const Moments moments = moments_on_chip<T, kSize>(sum, shift, stash, walk.left(), slices.inverse_count, group_sum);
  group_sum.leave();

  A k[3];
  finish_forward<T>(op, channel, moments, affine, rank == 0 && threadIdx.x == 0, k);
  T* const output = static_cast<T*>(op.output);
  int i = 0;
  for (auto at = walk; at.left() > 0; at.next()) {
    A v[kSize], y[kSize];
    stash.read(i++, v);
#pragma unroll
    for (int e = 0; e < kSize; ++e) y[e] = Normalize::apply({v[e]}, k);
    store_vector(output + at.offset(), y);
  }
  group_sum.finish();
}

template <class T, int kSize, int kThreads, bool kCluster>
__global__ void __launch_bounds__(kThreads, kOnChipBlocks<T, kThreads>)
    batch_norm_backward_onchip_kernel(const BatchNormBackward op, const PlaneSlices slices, const int64_t stash_size) {
  using A = Compute<T>;
  using Group = GroupSum<double, 3, kThreads, kThreads, kCluster>;
  SHARED_ARRAY(double, exchange, Group::kSharedValues);
  DYNAMIC_SHARED(T, stashes);
  Group group_sum(exchange);
  Stash<T, kSize, kThreads> dy_stash(stashes), x_stash(stashes + stash_size);

  const unsigned rank = kCluster ? cluster_rank() : 0;
  const int64_t channel = blockIdx.x / slices.slices;
  const PlaneWalk<kSize, kThreads> walk(slices, channel, rank);

  const auto scale = ChannelScale<A>::load(Type<T>{}, op, channel);
  const A saved[2] = {scale.mean, scale.rstd};
  GradientSums<A> sum;
  sum.start(saved);
  sum_planes<T>(walk, Inputs<T, 2>{{static_cast<const T*>(op.grad_output), static_cast<const T*>(op.input)}}, sum,
                [&](const auto& v) {
                  dy_stash.push(v[0]);
                  x_stash.push(v[1]);
                });
  double totals[3];
  sum.totals(saved, totals);
  group_sum(totals);
  group_sum.leave();

  A k[5];
  finish_backward<T>(op, channel, totals, slices.inverse_count, scale, rank == 0 && threadIdx.x == 0, k);
  T* const grad_input = static_cast<T*>(op.grad_input);
  int i = 0;
  for (auto at = walk; at.left() > 0; at.next()) {
    A dy[kSize], x[kSize], dx[kSize];
    dy_stash.read(i, dy);
    x_stash.read(i++, x);
#pragma unroll
    for (int e = 0; e < kSize; ++e) dx[e] = TrainingGradient::apply({dy[e], x[e]}, k);
    store_vector(grad_input + at.offset(), dx);
  }
  group_sum.finish();
}

}  // namespace normext::cuda
