// ring_parts.cuh -- rows that are too long for a block's ring: the blocks of a cluster have a part each of every row,
// and send each other what they have summed.
//
// A barrier of the cluster for every sum would have all that was written before seen by the whole GPU. A message is
// waited for like a copy: by its bytes.
#pragma once
#include "cuda/elements/reduce.cuh"
#include "cuda/elements/vec.cuh"

namespace normext::cuda {

// Which columns are this block's: all of them; or, in a cluster, as many as its peers', and the last block's the rest.
template <bool kCluster>
struct RingPart {
  int all, share;
  int first = kCluster ? static_cast<int>(cluster_rank()) * share : 0, columns = columns_of(first);

  // Of the part that begins there.
  __device__ int columns_of(int column) const { return kCluster ? min(share, all - column) : all; }
  // Of a grid whose rows are shared out to blocks, or to clusters.
  __device__ static unsigned group() { return kCluster ? blockIdx.x / cluster_size() : blockIdx.x; }
};

// Before the first transfer from a peer, and behind the last.
template <bool kCluster>
__device__ void meet() {
  if constexpr (kCluster) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }
}

// Sums over the threads of a block and, with kCluster, over its peers: in the order of the blocks, so all of them get
// the same bits.
template <int kMaxCount, int kThreads, bool kCluster>
class RingSum {
  using OfBlock = GroupSum<float, kMaxCount, kThreads, kThreads, false>;

 public:
  // Of the arrays that the constructor wants.
  static constexpr int kSharedValues = OfBlock::kSharedValues, kMessages = kCluster ? 2 * kMaxCluster : 1;
  static constexpr int kBarriers = kCluster ? 2 : 1;

  OfBlock of_block;

  __device__ RingSum(float* shared, float4* messages, TransferBarrier* arrived)
      : of_block(shared), shared_(shared), messages_(messages), arrived_(arrived) {}

  // By all threads, before they meet: sets to zero what warps that are not there would write, too.
  __device__ void start() {
    for (int i = threadIdx.x; i < kSharedValues; i += blockDim.x) shared_[i] = 0;
    if (!kCluster || threadIdx.x > 0) return;
    barrier_init(arrived_, 1);
    barrier_init(arrived_ + 1, 1);
    fence_transfers();
  }

  template <int kCount>
  __device__ void operator()(float (&values)[kCount]) {
    of_block(values);
    if constexpr (kCluster) {
      const float4* const messages = exchange({values[0], kCount > 1 ? values[1] : 0, kCount > 2 ? values[2] : 0, 0});
      float4 sums = messages[0];
#pragma unroll 1
      for (unsigned block = 1; block < cluster_size(); ++block) {
        const float4 message = messages[block];
        sums.x += message.x, sums.y += message.y, sums.z += message.z;
      }
      values[0] = sums.x;
      if constexpr (kCount > 1) values[1] = sums.y;
      if constexpr (kCount > 2) values[2] = sums.z;
    }
  }

  // Sends the first warp's message to all blocks of the cluster, and returns those of all, in their order. The threads
  // of a block have met for sums of their own since the last time. There are two buffers in turn: who sends to one
  // again has all messages of the other, and no block has sent its own before all its threads had read the first.
  __device__ const float4* exchange(const float4& message) {
    float4* const buffer = messages_ + turn_ % 2 * kMaxCluster;
    TransferBarrier* const arrived = arrived_ + turn_ % 2;
    const unsigned blocks = cluster_size();
    if (threadIdx.x == 0) barrier_arrive_expecting(arrived, blocks * sizeof(float4));
    if (threadIdx.x < blocks) send16(buffer + cluster_rank(), bits_as<uint4>(message), arrived, threadIdx.x);
    barrier_wait(arrived, turn_ / 2 % 2);
    ++turn_;
    return buffer;
  }

 private:
  float* shared_;
  float4* messages_;
  TransferBarrier* arrived_;
  unsigned turn_ = 0;
};

}  // namespace normext::cuda
