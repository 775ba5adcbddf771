// bugs_of_clusters.cpp -- planted bugs between the blocks of a cluster.
#include "planted_bugs.h"

namespace normext::test {
namespace {

constexpr unsigned kBlocks = 4;

unsigned next_block() { return (cuda::cluster_rank() + 1) % cuda::cluster_size(); }
float of_next_block(size_t i) { return input((i + kThreads) % (kBlocks * kThreads)); }

// A block reads what its peer has not written.
__global__ void missing_cluster_sync(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = x[i];
  if (fixed) cuda::cluster_sync();
  y[i] = cuda::cluster_peer(values, next_block())[threadIdx.x];
  cuda::cluster_sync();
}

// A block exits, and its shared memory with it, before its peer has asked for it ...
__global__ void exited_peer(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = x[i];
  cuda::cluster_sync();
  y[i] = cuda::cluster_peer(values, next_block())[threadIdx.x];
  if (fixed) cuda::cluster_sync();
}

// ... or when the peer has the address, but has not read yet.
__global__ void exited_peer_read(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  const float* const peer = cuda::cluster_peer(values, next_block());
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = x[i];
  cuda::cluster_sync();
  y[i] = peer[threadIdx.x];  // exited_peer_read
  if (fixed) cuda::cluster_sync();
}

// One block waits for its own threads only, and exits.
__global__ void missed_cluster_sync(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = x[i];
  if (fixed || cuda::cluster_rank() > 0) {
    cuda::cluster_sync();  // missed_cluster_sync
  } else {
    __syncthreads();
  }
  y[i] = cuda::cluster_peer(values, next_block())[threadIdx.x];
  if (fixed || cuda::cluster_rank() > 0) cuda::cluster_sync();
}

// Half a block waits for its own threads, half for the whole cluster.
__global__ void cluster_deadlock(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = x[i];
  if (fixed || threadIdx.x % 2 == 0) {
    cuda::cluster_sync();  // cluster_deadlock
  } else {
    __syncthreads();  // cluster_deadlock
  }
  y[i] = cuda::cluster_peer(values, next_block())[threadIdx.x];
  cuda::cluster_sync();
}

__global__ void divergent_cluster_sync(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = x[i];
  if (fixed || cuda::cluster_rank() > 0) {
    cuda::cluster_sync();  // divergent_cluster_sync
  } else {
    cuda::cluster_sync();  // divergent_cluster_sync
  }
  y[i] = cuda::cluster_peer(values, next_block())[threadIdx.x];
  cuda::cluster_sync();
}

}  // namespace

std::vector<Bug> bugs_of_clusters() {
  const cuda::Launch how = blocks(kBlocks, kBlocks);
  return {
      {"missing_cluster_sync", missing_cluster_sync, of_next_block, how},
      {"exited_peer", exited_peer, of_next_block, how},
      {"exited_peer_read", exited_peer_read, of_next_block, how},
      {"missed_cluster_sync", missed_cluster_sync, of_next_block, how},
      {"cluster_deadlock", cluster_deadlock, of_next_block, how},
      {"divergent_cluster_sync", divergent_cluster_sync, of_next_block, how},
  };
}

}  // namespace normext::test
