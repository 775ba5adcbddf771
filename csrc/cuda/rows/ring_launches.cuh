// ring_launches.cuh -- how many threads, blocks and stages the ring of ring.cuh has for rows of which length: a rule,
// since one kernel serves them all.
#pragma once
#include <algorithm>

#include "cuda/elements/launch.cuh"

namespace normext::cuda {

// Of an SM. Forward they have 64 registers each; backward 128, half of which are sums for weight and bias.
constexpr int kRingThreads = 1024, kRingBackwardThreads = 512;
constexpr int kRingVecs = 4;    // of a thread, at most
constexpr int kRingStages = 8;  // at most
constexpr int64_t kRingLeastBytes = 513 * 16, kRingAloneBytes = 40 << 10;

// Rows that come through a ring: how many arrays of them come, and how many are moved, with what is stored.
struct RingTraffic {
  int64_t row_bytes, parameter_bytes;
  int arrays, moved;

  // An only block hides its sums behind the copies of rows to come, if those take longer than it computes: by
  // instructions and barriers from 28 KB that are moved for a row on, and by caution from 40 KB on.
  bool may_be_alone() const { return moved * row_bytes >= kRingAloneBytes; }
};

struct RingLaunch {
  int threads, blocks;  // blocks of an SM
  int stages = 0;       // of a block; none: no ring for such rows
};

// Of three stages one is computed, one is filled again at its first sums, and one is on its way: two rows of each block
// at least, where an SM of an H200 needs 25 KB. Blocks hide each other's sums, if there is room for as many times the
// parameters; the rest of the memory goes to more stages. Threads have as many vectors as each other, but for the row's
// last.
inline RingLaunch ring_launch(const RingTraffic& traffic, int threads, int most_blocks, const Device& device) {
  if (!device.has_clusters || traffic.row_bytes < kRingLeastBytes) return {};
  const int64_t vectors = traffic.row_bytes / 16;
  for (int blocks = most_blocks; blocks > 0; --blocks) {
    const int64_t room = device.max_shared_bytes / blocks - kExchangeBytes - traffic.parameter_bytes;
    const int stages = static_cast<int>(std::min<int64_t>(kRingStages, room / (traffic.arrays * traffic.row_bytes)));
    const int64_t vecs = ceil_div(vectors, threads / blocks / 32 * 32);
    if (stages < 3 || vecs > kRingVecs || (blocks == 1 && !traffic.may_be_alone())) continue;
    return {static_cast<int>(ceil_div(ceil_div(vectors, vecs), 32) * 32), blocks, stages};
  }
  return {};
}

// Forward, up to four blocks.
inline RingLaunch ring_forward_launch(const RingTraffic& traffic, const Device& device) {
  return ring_launch(traffic, kRingThreads, 4, device);
}
// Backward, each block leaves lines of sums behind: no more blocks than it takes.
inline RingLaunch ring_backward_launch(const RingTraffic& traffic, const Device& device) {
  return ring_launch(traffic, kRingBackwardThreads, traffic.may_be_alone() ? 1 : 2, device);
}

}  // namespace normext::cuda
