// semantics.cpp -- the emulator itself: what CUDA's functions return, in which order blocks run, errors and OS threads.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <thread>
#include <vector>

#include "cuda/elements/platform.cuh"

namespace {

using normext::cuda::launch;
using normext::cuda::Launch;

#define CHECK(condition)                                                  \
  if (!(condition)) {                                                     \
    std::printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
    std::exit(EXIT_FAILURE);                                              \
  }

Launch shape(dim3 grid, dim3 block, unsigned cluster = 1) {
  return {.grid = grid, .block = block, .stream = nullptr, .shared_bytes = 0, .cluster = cluster};
}

bool fails(const std::function<void()>& action) {
  try {
    action();
  } catch (const emu::Error&) {
    return true;
  }
  return false;
}

// The definitions in CUDA's programming guide, lane by lane.
template <class T>
__global__ void shuffles(int width, int distance) {
  const int lane = static_cast<int>(threadIdx.x % 32), group = lane / width * width;
  const unsigned all = 0xffffffffu;
  const auto from = [](int l) { return static_cast<T>(l + 1); };
  CHECK(__shfl_sync(all, from(lane), distance, width) == from(group + distance % width));
  CHECK(__shfl_up_sync(all, from(lane), distance, width) == from(lane - distance >= group ? lane - distance : lane));
  CHECK(__shfl_down_sync(all, from(lane), distance, width) ==
        from(lane + distance < group + width ? lane + distance : lane));
  if (distance < width) CHECK(__shfl_xor_sync(all, from(lane), distance, width) == from(lane ^ distance));
}

__global__ void votes() {
  const unsigned lane = threadIdx.x % 32, live = threadIdx.x < 32 ? 0xffffffffu : 0xffu;  // 40 threads
  CHECK(__ballot_sync(live, lane % 2) == (0xaaaaaaaau & live));
  CHECK(__any_sync(live, lane == 7) && !__any_sync(live, lane == 32));
  CHECK(__all_sync(live, lane < 32) && !__all_sync(live, lane != 7));
}

// Parts of a warp with masks of their own do not wait for each other.
__global__ void parts_of_warps() {
  const unsigned part = threadIdx.x % 32 / 8, mask = 0xffu << 8 * part;
  for (unsigned i = 0; i <= part; ++i) __syncwarp(mask);
  CHECK(__ballot_sync(mask, 1) == mask);
  __syncwarp();
}

// Each block stores its turn.
__global__ void turns(int* turn_of_block, int* next) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  if (thread == blockDim.x * blockDim.y * blockDim.z - 1) turn_of_block[block] = (*next)++;
}

std::vector<int> turns_in(emu::Options schedule) {
  emu::options = schedule;
  std::vector<int> turn(24, -1);
  int next = 0;
  launch(turns, shape({2, 3, 4}, {5, 4, 3}), turn.data(), &next);
  emu::options = {};
  return turn;
}

void check_turns() {
  std::vector<int> forward(24), backward;
  std::iota(forward.begin(), forward.end(), 0);
  backward.assign(forward.rbegin(), forward.rend());
  CHECK(turns_in({.order = emu::Order::forward}) == forward);
  CHECK(turns_in({.order = emu::Order::backward}) == backward);
  const std::vector<int> one = turns_in({.order = emu::Order::random, .seed = 1});
  const std::vector<int> two = turns_in({.order = emu::Order::random, .seed = 2});
  CHECK(one != forward && one != backward && one != two);
  CHECK(one == turns_in({.order = emu::Order::random, .seed = 1}));
  CHECK(std::is_permutation(one.begin(), one.end(), forward.begin()));
}

__global__ void shared_memory() {
  SHARED_ARRAY(double, values, 3);
  CHECK(std::isnan(values[threadIdx.x % 3]));  // also in the second block, and in the next launch
  DYNAMIC_SHARED(float, dynamic);
  CHECK(reinterpret_cast<uintptr_t>(dynamic) % 16 == 0);
  __syncthreads();
  values[threadIdx.x % 3] = 0;
}

// Threads that have arrived at the cluster's barrier meet at others before they wait: round after round.
__global__ void cluster() {
  SHARED_ARRAY(unsigned, rank, 1);
  for (unsigned round = 0; round < 3; ++round) {
    *rank = round + normext::cuda::cluster_rank();
    CHECK(normext::cuda::cluster_size() == 8 && *rank == round + blockIdx.x % 8);
    normext::cuda::cluster_arrive();
    __syncthreads();
    CHECK(__all_sync(0xffffffffu, 1));
    normext::cuda::cluster_wait();
    for (unsigned peer = 0; peer < 8; ++peer) CHECK(*normext::cuda::cluster_peer(rank, peer) == round + peer);
    normext::cuda::cluster_arrive();
    __syncthreads();
    normext::cuda::cluster_wait();
  }
}

// An error leaves some threads in the middle of the kernel, and the next launch as good as the first.
__global__ void sum_unless(bool error, float* sum) {
  SHARED_ARRAY(float, values, 64);
  values[threadIdx.x] = 1;
  __syncthreads();
  if (error && threadIdx.x == 33) throw std::out_of_range("thrown by a kernel");
  if (error && threadIdx.x < 10) __syncthreads();
  float total = values[threadIdx.x] + values[threadIdx.x ^ 32];
  for (int distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(0xffffffffu, total, distance);
  *sum = total;
}

void check_recovery() {
  for (const emu::Order order : {emu::Order::forward, emu::Order::backward, emu::Order::random}) {
    emu::options.order = order;
    for (int i = 0; i < 100; ++i) {
      const bool error = i % 2 == 0;
      float sum = 0;
      bool thrown = false;
      try {
        launch(sum_unless, shape(3, 64), error, &sum);
      } catch (const std::out_of_range&) {
        thrown = true;
      }
      CHECK(thrown == error && (error || sum == 64));
    }
  }
  emu::options = {};
}

void check_os_threads() {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([] {
      for (int i = 0; i < 200; ++i) {
        float sum = 0;
        launch(sum_unless, shape(2, 64), false, &sum);
        CHECK(sum == 64);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void check_math() {
  for (float x = 1e-40f; x < 1e38f; x *= 1.00037f) {
    CHECK(__frsqrt_rn(x) == static_cast<float>(1 / std::sqrt(static_cast<long double>(x))));
  }
  CHECK(std::isinf(__frsqrt_rn(0)) && std::isnan(__frsqrt_rn(-1)));
  CHECK(min(1, 2) == 1 && max(-1, 1) == 1 && max(-1, 1u) == 0xffffffffu && min(int64_t{1}, int64_t{2}) == 1);
  CHECK(min(NAN, 1.0f) == 1 && max(1.0, NAN) == 1 && max(1.0f, 2.0) == 2);
}

void check_device() {
  emu::device.has_clusters = false;
  CHECK(fails([] { launch(cluster, shape(8, 32, 8)); }));
  emu::device = {};
}

}  // namespace

int main() {
  for (int width = 1; width <= 32; width *= 2) {
    for (int distance = 0; distance < 32; ++distance) {
      launch(shuffles<float>, shape(1, 64), width, distance);
      launch(shuffles<double>, shape(1, 64), width, distance);
      launch(shuffles<int>, shape(1, 64), width, distance);
      launch(shuffles<uint16_t>, shape(1, 64), width, distance);
    }
  }
  launch(votes, shape(1, 40));
  launch(parts_of_warps, shape(1, 96));
  launch(shared_memory, shape(2, 40));
  launch(cluster, shape(16, 1024, 8));
  check_turns();
  check_recovery();
  check_os_threads();
  check_math();
  check_device();
}
