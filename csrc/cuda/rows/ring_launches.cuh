// ring_launches.cuh -- how many threads, blocks and stages the ring of ring.cuh has for rows of which length: a rule,
// since one kernel serves them all.
#pragma once
#include <algorithm>
#include <bit>

#include "cuda/elements/launch.cuh"
#include "cuda/elements/reduce.cuh"

namespace normext::cuda {

// Of an SM. Forward they have 64 registers each; backward 128, half of which are sums for weight and bias.
constexpr int kRingThreads = 1024, kRingBackwardThreads = 512;
constexpr int kRingVecs = 4;    // of a thread, at most
constexpr int kRingStages = 8;  // at most
constexpr int kRingLeastStages = 3;
constexpr int64_t kRingLeastBytes = 257 * 16, kRingAloneBytes = 40 << 10;
// Of shared memory, for clusters, and for backward: with less, an SM has room for parts that are little longer than
// rows in registers, and those are GPUs for which nvcc has too few registers for what backward adds up.
constexpr int kLargeSharedBytes = 128 << 10;

// Rows that come through a ring, or parts of them: how long they are, and how long a column's parameters; how many
// arrays of them come, and how many are moved, with what is stored.
struct RingTraffic {
  int64_t vectors, parameter_bytes;  // parameters': of a vector
  int arrays, moved;

  int64_t bytes() const { return vectors * 16; }
  // What a block has room for, beside the parameters, where an SM has so many of them.
  int64_t stages(const Device& device, int blocks) const {
    const int64_t room = device.max_shared_bytes / blocks - kExchangeBytes - vectors * parameter_bytes;
    return std::min<int64_t>(kRingStages, room / (arrays * bytes()));
  }
  // An only block hides its sums behind the copies of rows to come, if those take longer than it computes: by
  // instructions and barriers from 28 KB that are moved for a row on, and by caution from 40 KB on.
  bool may_be_alone() const { return moved * bytes() >= kRingAloneBytes; }
};

struct RingLaunch {
  int threads, blocks;  // blocks of an SM
  int stages = 0;       // of a block; none: no ring for such rows
  int cluster = 1;      // blocks that have a part of each row ...
  int64_t part = 0;     // ... of so many vectors

  int64_t groups(const Device& device) const {  // clusters that run at once, or blocks where they are alone
    return int64_t{blocks} * device.clusters[std::countr_zero(static_cast<unsigned>(cluster))];
  }
};

// Of three stages one is computed, one is filled again at its first sums, and one is on its way: two rows of each block
// at least, where an SM of an H200 needs 25 KB. Blocks hide each other's sums, if there is room for as many times the
// parameters; the rest of the memory goes to more stages. Threads have as many vectors as each other, but for the row's
// last.
inline RingLaunch ring_launch(const RingTraffic& part, int threads, int most_blocks, const Device& device) {
  for (int blocks = most_blocks; blocks > 0; --blocks) {
    const int64_t stages = part.stages(device, blocks), vecs = ceil_div(part.vectors, threads / blocks / 32 * 32);
    if (stages < kRingLeastStages || vecs > kRingVecs || (blocks == 1 && !part.may_be_alone())) continue;
    return {static_cast<int>(ceil_div(ceil_div(part.vectors, vecs), 32) * 32), blocks, static_cast<int>(stages)};
  }
  return {};
}

// Rows that a block has no room for go to the smallest cluster whose blocks have it, each for a part: the more blocks,
// the longer they wait for each other, and the more SMs are left over.
template <class Launch>
RingLaunch ring_launch_of_parts(const RingTraffic& rows, int threads, const Device& device, const Launch& launch_of) {
  if (!device.has_clusters || rows.bytes() < kRingLeastBytes) return {};
  const int most = device.max_shared_bytes < kLargeSharedBytes ? 1 : kMaxCluster;
  for (int cluster = 1; cluster <= most; cluster *= 2) {
    RingTraffic part = rows;
    part.vectors = ceil_div(rows.vectors, cluster);
    if (part.stages(device, 1) < kRingLeastStages || ceil_div(part.vectors, threads) > kRingVecs) continue;
    RingLaunch launch = launch_of(part);
    launch.cluster = cluster;
    launch.part = part.vectors;
    if (launch.groups(device) == 0) launch.stages = 0;
    return launch;
  }
  return {};
}

// Forward, up to four blocks.
inline RingLaunch ring_forward_launch(const RingTraffic& rows, const Device& device) {
  return ring_launch_of_parts(rows, kRingThreads, device,
                              [&](const RingTraffic& part) { return ring_launch(part, kRingThreads, 4, device); });
}
// Backward, each block leaves lines of sums behind: no more blocks than it takes.
inline RingLaunch ring_backward_launch(const RingTraffic& rows, const Device& device) {
  if (device.max_shared_bytes < kLargeSharedBytes) return {};
  return ring_launch_of_parts(rows, kRingBackwardThreads, device, [&](const RingTraffic& part) {
    return ring_launch(part, kRingBackwardThreads, part.may_be_alone() ? 1 : 2, device);
  });
}

}  // namespace normext::cuda
