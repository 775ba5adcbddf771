// launch.h -- runs a grid: one cluster after the other, in each of them one warp after the other.
#pragma once
#include <algorithm>
#include <bit>
#include <exception>
#include <functional>
#include <mutex>
#include <utility>

#include "transfers.h"

// CUDA's names. The first two are those of the running thread.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emu {

// The device that kernels see. Few multiprocessors make small grids, whose blocks have more than one thing to do.
struct Device {
  int sm_count = 2;
  int max_shared_bytes = 227 << 10;
  bool has_clusters = true;
  int clusters = 2;  // of any size, that run at once as kernels are told
};
inline Device device;

inline const std::function<void()>* kernel = nullptr;  // of this launch, its arguments bound
inline std::exception_ptr failure;                     // what a thread threw

// What each fiber does: it runs one thread's kernel, and waits for the next.
inline void thread_main() {
  for (;;) {
    try {
      (*kernel)();
      return_from_kernel();
    } catch (...) {
      failure = std::current_exception();
    }
    Fiber::suspend();
  }
}

inline void resume(Thread& thread) {
  running = &thread;
  threadIdx = thread.index;
  blockIdx = thread.block->index;
  thread.fiber->resume();
  if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
}

// How many threads wait where.
[[noreturn, gnu::cold]] inline void fail_deadlock() {
  struct Group {
    const Thread* first;
    unsigned count;
  };
  std::vector<Group> groups;
  for (const Warp& warp : cluster.warps) {
    for (unsigned rest = warp.live; rest; rest &= rest - 1) {
      const Thread& t = warp.lanes[std::countr_zero(rest)];
      const auto same = [&](const Group& g) { return g.first->op == t.op && g.first->where == t.where; };
      const auto group = std::find_if(groups.begin(), groups.end(), same);
      if (group == groups.end()) {
        groups.push_back({&t, 1});
      } else {
        ++group->count;
      }
    }
  }
  std::string report = "deadlock: no thread can go on";
  for (const Group& g : groups) report += "\n  " + waiting(*g.first) + ", " + std::to_string(g.count) + " in all";
  fail(report);
}

// Each warp in turn runs as far as it gets without the others. That is the worst schedule for a forgotten barrier,
// whether it would have kept a reader from being early or a writer from overtaking readers; a fair one hides such bugs.
// Transfers are as slow as can be, for the same reason.
inline void run_cluster(Schedule& schedule, std::vector<size_t>& warps) {
  while (cluster.live > 0) {
    bool progress = false;
    const auto finish_one = [&] {
      finish_transfer(schedule.next_of(cluster.transfers.size()));
      progress = true;
    };
    schedule.shuffle(warps);
    for (const size_t w : warps) {
      if (!cluster.transfers.empty() && schedule.is_early()) finish_one();
      Warp& warp = cluster.warps[w];
      while (warp.runnable) {
        resume(warp.lanes[schedule.pick(warp.runnable)]);
        progress = true;
      }
    }
    if (!progress && !cluster.transfers.empty()) finish_one();
    if (!progress) fail_deadlock();
  }
}

inline void check_limits(dim3 grid, dim3 block, size_t dynamic_bytes, unsigned blocks_per_cluster) {
  const auto sizes = [](dim3 d) { return text(uint3{d.x, d.y, d.z}); };
  const auto within = [](dim3 d, unsigned x, unsigned y, unsigned z) {
    return d.x > 0 && d.x <= x && d.y > 0 && d.y <= y && d.z > 0 && d.z <= z;
  };
  if (!within(block, 1024, 1024, 64) || block.x * block.y * block.z > 1024) {
    fail("a block of " + sizes(block) + " threads: 1 to 1024 are possible, and 64 in z");
  }
  if (!within(grid, 0x7fffffff, 65535, 65535)) {
    fail("a grid of " + sizes(grid) + " blocks: 1 to (2147483647,65535,65535) are possible");
  }
  if (dynamic_bytes > static_cast<size_t>(device.max_shared_bytes)) {
    fail("too much shared memory: " + std::to_string(dynamic_bytes) + " bytes dynamic, at most " +
         std::to_string(device.max_shared_bytes) + " are possible");
  }
  const std::string clusters = "clusters of " + std::to_string(blocks_per_cluster) + " blocks: ";
  if (blocks_per_cluster < 1 || blocks_per_cluster > 8) fail(clusters + "1 to 8 are possible");
  if (blocks_per_cluster > 1 && !device.has_clusters) fail(clusters + "the device has no clusters");
  if (grid.x % blocks_per_cluster) fail(clusters + "a grid of " + sizes(grid) + " is not a multiple");
}

// What stays the same for all clusters of a launch.
inline void form_cluster(dim3 block, unsigned block_count) {
  const unsigned thread_count = block.x * block.y * block.z;
  const unsigned warps_per_block = (thread_count + kWarpSize - 1) / kWarpSize;
  cluster.blocks.resize(block_count);
  cluster.warps.resize(size_t{block_count} * warps_per_block);
  cluster.threads.resize(size_t{block_count} * thread_count);
  while (fibers.size() < cluster.threads.size()) fibers.emplace_back(thread_main, fibers.size());
  auto fiber = fibers.begin();
  Thread* thread = cluster.threads.data();
  for (unsigned b = 0; b < block_count; ++b) {
    for (unsigned i = 0; i < thread_count; ++i, ++thread) {
      thread->fiber = &*fiber++;
      thread->block = &cluster.blocks[b];
      thread->warp = &cluster.warps[b * warps_per_block + i / kWarpSize];
      thread->lane = i % kWarpSize;
      thread->index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
      if (thread->lane == 0) thread->warp->lanes = thread;
    }
  }
}

// Before the cluster that begins with block `first`.
inline void reset_cluster(uint3 first, unsigned thread_count, size_t dynamic_bytes) {
  const unsigned block_count = static_cast<unsigned>(cluster.blocks.size());
  for (unsigned b = 0; b < block_count; ++b) {
    Block& block = cluster.blocks[b];
    block.index = {first.x + b, first.y, first.z};
    block.live = thread_count;
    block.barrier = {.expected = thread_count};
    block.barriers.clear();
    block.shared.reset(dynamic_bytes, device.max_shared_bytes);
  }
  cluster.transfers.clear();
  cluster.live = thread_count * block_count;
  cluster.barrier = {.expected = cluster.live};
  const size_t warps_per_block = cluster.warps.size() / block_count;
  for (size_t w = 0; w < cluster.warps.size(); ++w) {
    const size_t lanes = std::min<size_t>(kWarpSize, thread_count - w % warps_per_block * kWarpSize);
    Warp& warp = cluster.warps[w];
    warp.live = warp.runnable = 0xffffffffu >> (kWarpSize - lanes);
    warp.in_collective = warp.waits_for_cluster = 0;
  }
  for (Thread& thread : cluster.threads) thread.has_arrived = false;
}

// Launches from several OS threads run one after the other. Throws what a thread of the kernel throws, and Error for
// what CUDA forbids; the next launch starts afresh.
inline void launch(const std::function<void()>& bound_kernel, dim3 grid, dim3 block, size_t dynamic_bytes,
                   unsigned blocks_per_cluster) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  check_limits(grid, block, dynamic_bytes, blocks_per_cluster);
  kernel = &bound_kernel;
  gridDim = grid;
  blockDim = block;
  form_cluster(block, blocks_per_cluster);
  Schedule schedule(options);
  std::vector<size_t> warps = schedule.permutation(cluster.warps.size());
  const size_t clusters_in_x = grid.x / blocks_per_cluster;
  try {
    for (const size_t c : schedule.permutation(clusters_in_x * grid.y * grid.z)) {
      const uint3 first{static_cast<unsigned>(c % clusters_in_x) * blocks_per_cluster,
                        static_cast<unsigned>(c / clusters_in_x % grid.y),
                        static_cast<unsigned>(c / clusters_in_x / grid.y)};
      reset_cluster(first, block.x * block.y * block.z, dynamic_bytes);
      run_cluster(schedule, warps);
    }
  } catch (...) {
    for (Thread& thread : cluster.threads) thread.fiber->restart();
    for (Block& b : cluster.blocks) b.shared.free();
    throw;
  }
}

}  // namespace emu
