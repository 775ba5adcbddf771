// bugs_of_transfers.cpp -- planted bugs around bulk copies, stores to peers, and the barriers that count their bytes.
#include "cuda/elements/vec.cuh"
#include "planted_bugs.h"

namespace normext::test {
namespace {

constexpr unsigned kHalf = kThreads / 2, kHalfBytes = kHalf * sizeof(float), kBytes = kThreads * sizeof(float);
constexpr unsigned kBlocks = 4;

float sum_of_halves(size_t i) { return input(i % kHalf) + input(i % kHalf + kHalf); }
float mirrored(size_t i) { return input(i ^ 127); }

// What most kernels here begin with: one thread makes the barriers ready for transfers.
void init(cuda::TransferBarrier* barriers, unsigned count, unsigned arrivals = 1) {
  if (threadIdx.x == 0) {
    for (unsigned i = 0; i < count; ++i) cuda::barrier_init(barriers + i, arrivals);
    cuda::fence_transfers();
  }
  __syncthreads();
}

void copy(float* to, const float* from, unsigned bytes, cuda::TransferBarrier* barrier, EMU_WHERE) {
  cuda::barrier_arrive_expecting(barrier, bytes, file, line);
  cuda::bulk_copy(to, from, bytes, barrier, file, line);
}

// The second phase of a barrier has the other parity.
__global__ void parity_forgotten(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, stage, kHalf);
  SHARED_ARRAY(cuda::TransferBarrier, full, 1);
  init(full, 1);
  float sum = 0;
  for (unsigned round = 0; round < 2; ++round) {
    if (threadIdx.x == 0) copy(stage, x + round * kHalf, kHalfBytes, full);
    cuda::barrier_wait(full, fixed ? round % 2 : 0);  // parity_forgotten
    sum += stage[threadIdx.x % kHalf];
    __syncthreads();
  }
  y[threadIdx.x] = sum;
}

// The phase before the first has the other parity, too: it is over.
__global__ void parity_of_nothing(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, stage, kThreads);
  SHARED_ARRAY(cuda::TransferBarrier, full, 1);
  init(full, 1);
  if (threadIdx.x == 0) copy(stage, x, kBytes, full);
  if (!fixed) cuda::barrier_wait(full, 1);
  if (fixed) cuda::barrier_wait(full, 0);
  y[threadIdx.x] = stage[threadIdx.x ^ 127];  // parity_of_nothing
  if (!fixed) cuda::barrier_wait(full, 0);
}

// A stage is filled again while a slow warp still reads it.
__global__ void released_early(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, stage, kHalf);
  SHARED_ARRAY(cuda::TransferBarrier, full, 1);
  init(full, 1);
  if (threadIdx.x == 0) copy(stage, x, kHalfBytes, full);
  float sum = 0;
  for (unsigned round = 0; round < 2; ++round) {
    cuda::barrier_wait(full, round);
    sum += stage[threadIdx.x % kHalf];  // released_early
    if (fixed) __syncthreads();
    if (threadIdx.x == 0 && round == 0) copy(stage, x + kHalf, kHalfBytes, full);
  }
  y[threadIdx.x] = sum;
}

// A barrier that expects no bytes is through when its thread has arrived ...
__global__ void missing_expect(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, stage, kThreads);
  SHARED_ARRAY(cuda::TransferBarrier, full, 1);
  init(full, 1);
  if (threadIdx.x == 0) {
    if (fixed) cuda::barrier_arrive_expecting(full, kBytes);
    if (!fixed) cuda::barrier_arrive(full);
    cuda::bulk_copy(stage, x, kBytes, full);  // missing_expect
  }
  cuda::barrier_wait(full, 0);
  y[threadIdx.x] = stage[threadIdx.x ^ 127];
}

// ... and one that expects more than comes never is.
__global__ void expects_too_much(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, stage, kThreads);
  SHARED_ARRAY(cuda::TransferBarrier, full, 1);
  init(full, 1);
  if (threadIdx.x == 0) {
    cuda::barrier_arrive_expecting(full, fixed ? kBytes : kBytes + 16);
    cuda::bulk_copy(stage, x, kBytes, full);
  }
  cuda::barrier_wait(full, 0);  // expects_too_much
  y[threadIdx.x] = stage[threadIdx.x ^ 127];
}

__global__ void missing_fence(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, stage, kThreads);
  SHARED_ARRAY(cuda::TransferBarrier, full, 1);
  if (threadIdx.x == 0) {
    cuda::barrier_init(full, 1);
    if (fixed) cuda::fence_transfers();
    copy(stage, x, kBytes, full);  // missing_fence
  }
  __syncthreads();
  cuda::barrier_wait(full, 0);
  y[threadIdx.x] = stage[threadIdx.x ^ 127];
}

// What threads have written may come behind the copy that is to overwrite it.
__global__ void missing_proxy_fence(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, stage, kThreads);
  SHARED_ARRAY(cuda::TransferBarrier, full, 1);
  init(full, 1);
  stage[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = stage[threadIdx.x ^ 127] - x[threadIdx.x ^ 127];
  if (fixed) cuda::fence_transfers();
  __syncthreads();
  if (threadIdx.x == 0) copy(stage, x, kBytes, full);  // missing_proxy_fence
  cuda::barrier_wait(full, 0);
  y[threadIdx.x] += stage[threadIdx.x ^ 127];
}

__global__ void misaligned_copy(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, stage, kThreads);
  SHARED_ARRAY(cuda::TransferBarrier, full, 1);
  init(full, 1);
  if (threadIdx.x == 0) copy(stage, fixed ? x : x + 1, fixed ? kBytes : kBytes - 16, full);  // misaligned_copy
  cuda::barrier_wait(full, 0);
  y[threadIdx.x] = stage[threadIdx.x ^ 127];
}

// These two go one vector too far.
__global__ void bulk_overrun(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, stage, kHalf);
  SHARED_ARRAY(cuda::TransferBarrier, full, 1);
  init(full, 1);
  if (threadIdx.x == 0) copy(stage, x, fixed ? kHalfBytes : kHalfBytes + 16, full);  // bulk_overrun
  cuda::barrier_wait(full, 0);
  y[threadIdx.x] = stage[threadIdx.x % kHalf] + x[threadIdx.x % kHalf + kHalf];
}

__global__ void bulk_source_overrun(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, stage, kThreads + 4);
  SHARED_ARRAY(cuda::TransferBarrier, full, 1);
  init(full, 1);
  if (threadIdx.x == 0) copy(stage, x, fixed ? kBytes : kBytes + 16, full);  // bulk_source_overrun
  cuda::barrier_wait(full, 0);
  y[threadIdx.x] = stage[threadIdx.x ^ 127];
}

// ------------------------------------------------------------------------------------------------ clusters
void cluster_sync(EMU_WHERE) {
  cuda::cluster_arrive(file, line);
  cuda::cluster_wait(file, line);
}

// The sum of a value from each block, which every block gets from every other.
void exchange(uint4* places, cuda::TransferBarrier* barrier, float value, bool expect = true) {
  if (threadIdx.x != 0) return;
  if (expect) cuda::barrier_arrive_expecting(barrier, kBlocks * sizeof(uint4));
  for (unsigned rank = 0; rank < kBlocks; ++rank)
    cuda::send16(places + cuda::cluster_rank(), {cuda::bits_as<unsigned>(value), 0, 0, 0}, barrier, rank);
}
float sum_of_places(const uint4* places) {
  float sum = 0;
  for (unsigned rank = 0; rank < kBlocks; ++rank) sum += cuda::bits_as<float>(places[rank].x);
  return sum;
}

constexpr int kRounds = 5;
float sum_of_rounds(size_t) {
  float sum = 0;
  for (size_t b = 0; b < kBlocks; ++b) sum += input(b * kThreads);
  return sum * kRounds * (kRounds + 1) / 2;
}

// A peer sends the next sums where a slow warp still reads the last. With two buffers in turn none does: whoever sends
// to one again has the other's, which nobody sends before all of its warps have read the first.
__global__ void exchange_reused(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(uint4, places, 2 * kBlocks);
  SHARED_ARRAY(cuda::TransferBarrier, sent, 2);
  init(sent, 2);
  cluster_sync();
  float sum = 0;
  for (int round = 0; round < kRounds; ++round) {
    uint4* const buffer = places + (fixed ? round % 2 * kBlocks : 0);
    __syncthreads();
    exchange(buffer, sent + round % 2, x[blockIdx.x * kThreads] * static_cast<float>(round + 1));
    cuda::barrier_wait(sent + round % 2, round / 2 % 2);
    sum += sum_of_places(buffer);
  }
  y[blockIdx.x * kThreads + threadIdx.x] = sum;
  cluster_sync();
}

float sum_of_blocks(size_t) { return sum_of_rounds(0) / (kRounds * (kRounds + 1) / 2); }

// Nobody knows whether the peers' barriers are there yet.
__global__ void missing_peer_init(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(uint4, places, kBlocks);
  SHARED_ARRAY(cuda::TransferBarrier, sent, 1);
  init(sent, 1);
  if (fixed) cluster_sync();
  exchange(places, sent, x[blockIdx.x * kThreads]);
  cuda::barrier_wait(sent, 0);
  y[blockIdx.x * kThreads + threadIdx.x] = sum_of_places(places);
  cluster_sync();
}

// A cluster's barrier does not see what is sent.
__global__ void unexpected_send(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(uint4, places, kBlocks);
  SHARED_ARRAY(cuda::TransferBarrier, sent, 1);
  init(sent, 1);
  cluster_sync();
  exchange(places, sent, x[blockIdx.x * kThreads], fixed);
  if (fixed) cuda::barrier_wait(sent, 0);
  cluster_sync();
  y[blockIdx.x * kThreads + threadIdx.x] = fixed ? sum_of_places(places) : 0;
}

// A block exits, and its shared memory with it, before what its peers send has come.
__global__ void peer_gone(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(uint4, places, kBlocks);
  SHARED_ARRAY(cuda::TransferBarrier, sent, 1);
  init(sent, 1);
  cluster_sync();
  exchange(places, sent, x[blockIdx.x * kThreads]);
  cluster_sync();
  if (fixed || cuda::cluster_rank() > 0) cuda::barrier_wait(sent, 0);
  y[blockIdx.x * kThreads + threadIdx.x] = fixed ? sum_of_places(places) : 0;
}

}  // namespace

std::vector<Bug> bugs_of_transfers() {
  const cuda::Launch one = blocks(1), cluster = blocks(kBlocks, kBlocks);
  return {
      {"parity_forgotten", parity_forgotten, sum_of_halves, one},
      {"parity_of_nothing", parity_of_nothing, mirrored, one},
      {"released_early", released_early, sum_of_halves, one},
      {"missing_expect", missing_expect, mirrored, one},
      {"expects_too_much", expects_too_much, mirrored, one},
      {"missing_fence", missing_fence, mirrored, one},
      {"missing_proxy_fence", missing_proxy_fence, mirrored, one},
      {"misaligned_copy", misaligned_copy, mirrored, one},
      {"bulk_overrun", bulk_overrun, sum_of_halves, one},
      {"bulk_source_overrun", bulk_source_overrun, mirrored, one},
      {"exchange_reused", exchange_reused, sum_of_rounds, cluster},
      {"missing_peer_init", missing_peer_init, sum_of_blocks, cluster},
      {"unexpected_send", unexpected_send, sum_of_blocks, cluster},
      {"peer_gone", peer_gone, sum_of_blocks, cluster},
  };
}

}  // namespace normext::test
