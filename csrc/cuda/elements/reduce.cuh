// reduce.cuh -- sums over the lanes of a warp, the warps of a block, the blocks of a cluster.
//
// Every thread gets the sum, and it is the same on every run: partners are fixed, and there are no atomics.
#pragma once
#include "cuda/elements/platform.cuh"

namespace normext::cuda {

constexpr int kWarpSize = 32;
constexpr int kMaxCluster = 8;  // blocks: what every GPU with clusters grants

// Sums over each group of kLanes neighbouring lanes, a power of two. All lanes of the warp must take part.
template <int kLanes, class A, int kCount>
__device__ void warp_sum(A (&values)[kCount]) {
  static_assert(kLanes <= kWarpSize);
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] += __shfl_xor_sync(0xffffffffu, values[k], offset);
  }
}

// The same over `lanes` of them, which is known at run time only.
template <class A, int kCount>
__device__ void warp_sum_of(A (&values)[kCount], int lanes) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    if (offset >= lanes) continue;
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] += __shfl_xor_sync(0xffffffffu, values[k], offset);
  }
}

// Sums over the lanes of a warp that are a multiple of `stride` apart, a power of two.
template <class A, int kCount>
__device__ void strided_warp_sum(A (&values)[kCount], int stride) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    if (offset < stride) break;
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] += __shfl_xor_sync(0xffffffffu, values[k], offset);
  }
}

// Sums over groups of kLanes threads of a block of kThreads; with kCluster, over the whole cluster.
template <class A, int kMaxCount, int kThreads, int kLanes, bool kCluster>
class GroupSum {
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kGroupWarps = kLanes > kWarpSize ? kLanes / kWarpSize : 1;
  static constexpr int kBuffer = kMaxCount * (kWarps + kCluster);  // a value a warp, and the block's for its peers

 public:
  static constexpr int kSharedValues = 2 * kBuffer;  // of the array that the constructor wants, shared by the block

  __device__ explicit GroupSum(A* shared) : shared_(shared) {}

  template <int kCount>
  __device__ void operator()(A (&values)[kCount]) {
    static_assert(kCount <= kMaxCount);
    warp_sum < kLanes<kWarpSize ? kLanes : kWarpSize>(values);
    if constexpr (kGroupWarps > 1) {
      // Two buffers in turn: whoever writes to one again has passed the barrier of the other, which nobody reaches
      // before having read the first.
      A* const buffer = shared_ + turn_ * kBuffer;
      const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
      if (lane == 0) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) buffer[k * kWarps + warp] = values[k];
      }
      __syncthreads();
      const int first = warp / kGroupWarps * kGroupWarps;
#pragma unroll
      for (int k = 0; k < kCount; ++k) values[k] = buffer[k * kWarps + first + lane % kGroupWarps];
      warp_sum<kGroupWarps>(values);
      if constexpr (kCluster) cluster_sum(values, buffer + kMaxCount * kWarps, lane);
      turn_ ^= 1;
    }
  }

  // To be called by all after the last sum, and before they return: a block's shared memory must outlive its peers'
  // reading it. What stands between the two need not wait for them.
  __device__ void leave() {
    if constexpr (kCluster) cluster_arrive();
  }
  __device__ void finish() {
    if constexpr (kCluster) cluster_wait();
  }

 private:
  template <int kCount>
  __device__ void cluster_sum(A (&values)[kCount], A* mine, int lane) {
    if (threadIdx.x == 0) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) mine[k] = values[k];
    }
    cluster_arrive();
    cluster_wait();
    const unsigned rank = lane % kMaxCluster;
    const bool exists = rank < cluster_size();
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = exists ? *cluster_peer(mine + k, rank) : A(0);
    warp_sum<kMaxCluster>(values);
  }

  A* shared_;
  int turn_ = 0;
};

}  // namespace normext::cuda
