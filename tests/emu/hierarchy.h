// hierarchy.h -- the threads, warps and blocks of the cluster that runs now, and what each of them waits for.
#pragma once
#include <vector_types.h>

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "fibers.h"
#include "shared_memory.h"

namespace emu {

constexpr unsigned kWarpSize = 32;

// What a thread can wait for, under the names that kernels know.
enum class Op : uint8_t {
  shfl,
  shfl_up,
  shfl_down,
  shfl_xor,
  ballot,
  any,
  all,
  syncwarp,
  syncthreads,
  cluster_barrier,
  transfer_barrier
};
constexpr const char* kOpNames[] = {
    "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync",       "__ballot_sync",         "__any_sync",
    "__all_sync",  "__syncwarp",     "__syncthreads",    "the cluster's barrier", "a barrier of transfers"};

struct Warp;
struct Block;

struct Thread {
  Fiber* fiber = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  unsigned lane = 0;
  uint3 index{};
  // What it waits for, or waited for last.
  Op op{};
  Where where{};
  // Of a warp collective: who takes part, what this thread brings and then gets, and for a shuffle from whom.
  unsigned mask = 0;
  uint64_t value = 0;
  unsigned argument = 0, width = 0;
  // Where it has arrived at the cluster's barrier without having waited yet, and for which round.
  Where arrived_at{};
  bool has_arrived = false;
  unsigned round = 0;

  unsigned bit() const { return 1u << lane; }
};

// One bit a lane. A lane that is live, but neither runnable nor in a collective, waits at a barrier.
struct Warp {
  Thread* lanes;
  unsigned live, runnable, in_collective, waits_for_cluster;
};

// Where all threads of a block or of a cluster must meet, round after round.
struct Barrier {
  unsigned expected;
  unsigned arrived = 0;
  unsigned round = 0;
  const Thread* first = nullptr;  // that arrived, and where
  Where where{};
  const Thread* returned = nullptr;  // a thread that will never arrive
};

// A barrier in shared memory that counts arrivals and bytes, phase after phase: CUDA's mbarrier.
struct TransactionBarrier {
  unsigned expected;        // arrivals in a phase
  unsigned missing;         // of this one
  int64_t bytes = 0;        // that are expected and have not come; negative: that have come and are not expected yet
  size_t announced = 0;     // bytes that are expected and not asked for
  bool gets_bytes = false;  // in this phase
  bool fenced = false;      // since its init
  unsigned phases = 0, phases_with_bytes = 0, seen = 0;  // through; up to the last with bytes, and that was waited for
  std::vector<Thread*> waiting{};
  std::map<const Thread*, unsigned> seen_by{};
};

struct Block {
  uint3 index{};
  unsigned live = 0;  // threads that have not returned
  Barrier barrier{};
  std::map<const void*, TransactionBarrier> barriers{};
  SharedMemory shared;
};

// Bytes on their way to shared memory.
struct Transfer {
  void* to;
  std::vector<char> bytes;
  Block* target;
  TransactionBarrier* barrier;
};

// The cluster that runs now: threads and warps block after block.
struct Cluster {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Block> blocks;
  std::vector<Transfer> transfers;
  unsigned live = 0;
  Barrier barrier{};
};
inline Cluster cluster;
inline std::deque<Fiber> fibers;  // as many as were ever needed: they are used again
inline Thread* running = nullptr;

inline std::string text(const uint3& i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}
inline std::string text(const Thread& t) { return "thread " + text(t.index) + " of block " + text(t.block->index); }
// The thread, what it waits for, and in which line.
inline std::string waiting(const Thread& t, Op op, const Where& where) {
  return text(t) + " at " + kOpNames[static_cast<int>(op)] + ", " + text(where);
}
inline std::string waiting(const Thread& t) { return waiting(t, t.op, t.where); }

}  // namespace emu
