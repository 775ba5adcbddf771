// bugs_of_clusters.cpp -- planted bugs between the blocks of a cluster.
#include "planted_bugs.h"

namespace normext::test {
namespace {

constexpr unsigned kBlocks = 4;

unsigned next_block() { return (cuda::cluster_rank() + 1) % cuda::cluster_size(); }
float of_next_block(size_t i) { return input((i + kThreads) % (kBlocks * kThreads)); }

void cluster_sync(EMU_WHERE) {
  cuda::cluster_arrive(file, line);
  cuda::cluster_wait(file, line);
}

// A block reads what its peer has not written.
__global__ void missing_cluster_sync(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = x[i];
  if (fixed) cluster_sync();
  y[i] = cuda::cluster_peer(values, next_block())[threadIdx.x];
  cluster_sync();
}

// A block exits, and its shared memory with it, before its peer has asked for it ...
__global__ void exited_peer(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = x[i];
  cluster_sync();
  y[i] = cuda::cluster_peer(values, next_block())[threadIdx.x];
  if (fixed) cluster_sync();
}

// ... or when the peer has the address, but has not read yet.
__global__ void exited_peer_read(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  const float* const peer = cuda::cluster_peer(values, next_block());
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = x[i];
  cluster_sync();
  y[i] = peer[threadIdx.x];  // exited_peer_read
  if (fixed) cluster_sync();
}

// One block waits for its own threads only, and exits.
__global__ void missed_cluster_sync(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = x[i];
  if (fixed || cuda::cluster_rank() > 0) {
    cluster_sync();  // missed_cluster_sync
  } else {
    __syncthreads();
  }
  y[i] = cuda::cluster_peer(values, next_block())[threadIdx.x];
  if (fixed || cuda::cluster_rank() > 0) cluster_sync();
}

// Half a block waits for its own threads, half for the whole cluster.
__global__ void cluster_deadlock(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = x[i];
  if (fixed || threadIdx.x % 2 == 0) {
    cluster_sync();  // cluster_deadlock
  } else {
    __syncthreads();  // cluster_deadlock
  }
  y[i] = cuda::cluster_peer(values, next_block())[threadIdx.x];
  cluster_sync();
}

__global__ void divergent_cluster_sync(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = x[i];
  if (fixed || cuda::cluster_rank() > 0) {
    cluster_sync();  // divergent_cluster_sync
  } else {
    cluster_sync();  // divergent_cluster_sync
  }
  y[i] = cuda::cluster_peer(values, next_block())[threadIdx.x];
  cluster_sync();
}

// Between arriving and waiting nothing is known of the peers.
__global__ void missing_wait(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = x[i];
  cuda::cluster_arrive();
  if (fixed) cuda::cluster_wait();
  y[i] = cuda::cluster_peer(values, next_block())[threadIdx.x];
  if (!fixed) cuda::cluster_wait();
  cluster_sync();
}

__global__ void never_waited(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = x[i];
  cluster_sync();
  y[i] = cuda::cluster_peer(values, next_block())[threadIdx.x];
  cuda::cluster_arrive();  // never_waited
  if (fixed) cuda::cluster_wait();
}

__global__ void never_arrived(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = x[i];
  if (fixed) cuda::cluster_arrive();
  cuda::cluster_wait();  // never_arrived
  y[i] = cuda::cluster_peer(values, next_block())[threadIdx.x];
  cluster_sync();
}

__global__ void arrived_twice(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  values[threadIdx.x] = x[i];
  cuda::cluster_arrive();  // arrived_twice
  if (fixed) cuda::cluster_wait();
  y[i] = fixed ? cuda::cluster_peer(values, next_block())[threadIdx.x] : 0;
  cuda::cluster_arrive();  // arrived_twice
  cuda::cluster_wait();
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
      {"missing_wait", missing_wait, of_next_block, how},
      {"never_waited", never_waited, of_next_block, how},
      {"never_arrived", never_arrived, of_next_block, how},
      {"arrived_twice", arrived_twice, of_next_block, how},
  };
}

}  // namespace normext::test
