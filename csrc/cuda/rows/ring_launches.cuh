// ring_launches.cuh -- how many threads, blocks and stages the ring of row_ring.cuh has for rows of which length: a
// rule, since one kernel serves them all.
#pragma once
#include <algorithm>

#include "cuda/elements/launch.cuh"

namespace normext::cuda {

constexpr int kRingThreads = 1024;  // of an SM: 64 registers each
constexpr int kRingVecs = 4;        // of a thread, at most
constexpr int kRingStages = 8;      // at most
constexpr int64_t kRingLeastBytes = 513 * 16, kRingAloneBytes = 20 << 10;

struct RingLaunch {
  int threads, blocks;  // blocks of an SM
  int stages = 0;       // of a block; none: no ring for such rows
};

// Of three stages one is computed, one is filled again at its first sums, and one is on its way: two rows of each block
// at least, where an SM of an H200 needs 25 KB. Blocks hide each other's sums, up to four of them if there is room for
// as many times the parameters; the rest of the memory goes to more stages. An only block hides its sums behind the
// copies of rows to come, if those take longer than it computes: by instructions and barriers from 14 KB on, and by
// caution from 20 KB on. The threads of an SM all have vectors then, and as many as each other but for the row's last.
inline RingLaunch ring_launch(int64_t row_bytes, int64_t parameter_bytes, const Device& device) {
  if (!device.has_clusters || row_bytes < kRingLeastBytes) return {};
  const int64_t vectors = row_bytes / 16;
  for (int blocks = 4; blocks > 0; --blocks) {
    const int64_t room = device.max_shared_bytes / blocks - kExchangeBytes - parameter_bytes;
    const int stages = static_cast<int>(std::min<int64_t>(kRingStages, room / row_bytes));
    const int64_t vecs = ceil_div(vectors, kRingThreads / blocks / 32 * 32);
    const bool is_slow = blocks == 1 && row_bytes < kRingAloneBytes;
    if (stages < 3 || vecs > kRingVecs || is_slow) continue;
    return {static_cast<int>(ceil_div(ceil_div(vectors, vecs), 32) * 32), blocks, stages};
  }
  return {};
}

}  // namespace normext::cuda
