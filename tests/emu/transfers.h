// transfers.h -- what moves without a thread: bulk copies, stores to peers, and the barriers that count their bytes.
//
// A transfer is on its way until nobody can go on without it, or in random order until any time before. Until then its
// place holds NaN, and AddressSanitizer reports whoever touches it: who waits too little, or asks for it too early.
#pragma once
#include <algorithm>
#include <memory>

#include "schedule.h"
#include "synchronization.h"

namespace emu {

constexpr size_t kTransferAlignment = 16;

inline void set_poison([[maybe_unused]] const Transfer& transfer, [[maybe_unused]] bool poisoned) {
#ifdef __SANITIZE_ADDRESS__
  if (poisoned)
    __asan_poison_memory_region(transfer.to, transfer.bytes.size());
  else
    __asan_unpoison_memory_region(transfer.to, transfer.bytes.size());
#endif
}

[[noreturn, gnu::cold]] inline void fail_at(Where where, const std::string& what) {
  fail(text(*running) + what + " at " + text(where));
}

inline TransactionBarrier& barrier_at(Block& block, const void* barrier, Where where) {
  const auto found = block.barriers.find(barrier);
  if (found == block.barriers.end())
    fail_at(where, " uses a barrier of block " + text(block.index) + " before its init");
  return found->second;
}

// ------------------------------------------------------------------------------------------------ barriers
inline void barrier_init(void* barrier, unsigned arrivals, Where where) {
  Block& block = *running->block;
  if (arrivals == 0 || reinterpret_cast<uintptr_t>(barrier) % 8) fail_at(where, " makes a barrier that cannot be");
  if (block.barriers.contains(barrier)) fail_at(where, " makes a barrier where there is one");
  block.barriers[barrier] = {.expected = arrivals, .missing = arrivals};
}

// A phase is through when all have arrived and all bytes that were expected have come. Peers may send before they are
// expected.
inline void settle(TransactionBarrier& barrier) {
  if (barrier.missing > 0 || barrier.bytes > 0) return;
  if (barrier.bytes < 0) fail("a barrier gets more bytes than it expects in its phase");
  barrier.missing = barrier.expected;
  ++barrier.phases;
  if (std::exchange(barrier.gets_bytes, false)) barrier.phases_with_bytes = barrier.phases;
  for (Thread* thread : barrier.waiting) thread->warp->runnable |= thread->bit();
  barrier.waiting.clear();
}

// Arrives, and expects so many bytes in this phase.
inline void arrive_expecting(void* at, size_t bytes, Where where) {
  TransactionBarrier& barrier = barrier_at(*running->block, at, where);
  barrier.bytes += static_cast<int64_t>(bytes);
  barrier.announced += bytes;
  barrier.gets_bytes |= bytes > 0;
  --barrier.missing;
  settle(barrier);
}

// The phases that a thread waits for are one behind the other: to wait once more for one that it has seen, as a wrong
// parity does, is to wait for nothing.
inline void await(void* at, unsigned parity, Where where) {
  Thread& me = *running;
  TransactionBarrier& barrier = barrier_at(*me.block, at, where);
  while (barrier.phases % 2 == parity) {
    wait_for(me, Op::transfer_barrier, where);
    barrier.waiting.push_back(&me);
    Fiber::suspend();
  }
  const auto [seen, is_first] = barrier.seen_by.emplace(&me, barrier.phases);
  if (!is_first && seen->second == barrier.phases) fail_at(where, " waits for a phase that it has waited for before");
  seen->second = barrier.seen = barrier.phases;
}

// ------------------------------------------------------------------------------------------------ transfers
inline bool overlap(const Transfer& a, const void* to, size_t bytes) {
  const auto *const first = static_cast<const char*>(a.to), *const second = static_cast<const char*>(to);
  return first < second + bytes && second < first + a.bytes.size();
}

inline void check_is_free(const void* to, size_t bytes, Where where) {
  for (const Transfer& other : cluster.transfers)
    if (overlap(other, to, bytes)) fail_at(where, " writes where a transfer is on its way");
}

inline void start_transfer(Block& target, void* to, const void* from, size_t bytes, void* barrier, Where where) {
  const auto* const begin = static_cast<const char*>(from);
  cluster.transfers.push_back({to, {begin, begin + bytes}, &target, &barrier_at(target, barrier, where)});
  std::memset(to, 0xff, bytes);
  set_poison(cluster.transfers.back(), true);
}

inline void finish_transfer(size_t index) {
  const Transfer transfer = std::move(cluster.transfers[index]);
  cluster.transfers.erase(cluster.transfers.begin() + static_cast<std::ptrdiff_t>(index));
  set_poison(transfer, false);
  std::memcpy(transfer.to, transfer.bytes.data(), transfer.bytes.size());
  transfer.target->shared.set_known(transfer.to, transfer.bytes.size());
  TransactionBarrier& barrier = *transfer.barrier;
  barrier.bytes -= static_cast<int64_t>(transfer.bytes.size());
  barrier.gets_bytes = true;
  settle(barrier);
}

// From global memory to this block's shared memory, by the asynchronous proxy: what the block's threads have written
// before, the barrier or what lies at the same place, it sees behind a fence only.
inline void bulk_copy(void* to, const void* from, size_t bytes, void* at, Where where) {
  Block& block = *running->block;
  TransactionBarrier& barrier = barrier_at(block, at, where);
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes) % kTransferAlignment || bytes == 0)
    fail_at(where, " copies what is no multiple of 16 bytes");
  if (!barrier.fenced) fail_at(where, " copies to a barrier without a fence behind its init");
  if (barrier.announced < bytes) fail_at(where, " copies more bytes than it has told the barrier to expect");
  barrier.announced -= bytes;
  check_is_free(to, bytes, where);
  if (!block.shared.is_known(to, bytes)) fail_at(where, " copies to where threads have written, without a fence");
  start_transfer(block, to, from, bytes, at, where);
}

// To the same place in the shared memory of block `rank` of the cluster, counted by the barrier at the same place
// there.
inline void send(void* to, const void* value, size_t bytes, void* barrier, unsigned rank, Where where) {
  if (rank >= cluster.blocks.size()) fail_at(where, " sends to a block that is not in its cluster");
  Block &mine = *running->block, &peer = cluster.blocks[rank];
  if (peer.live == 0) fail_at(where, " sends to block " + text(peer.index) + ", which has exited,");
  void* const there = mine.shared.same_place_in(peer.shared, to);
  void* const barrier_there = mine.shared.same_place_in(peer.shared, barrier);
  if (!there || !barrier_there) fail_at(where, " sends to what is not in shared memory");
  if (!barrier_at(peer, barrier_there, where).fenced)
    fail_at(where, " sends to a barrier without a fence behind its init");
  check_is_free(there, bytes, where);
  start_transfer(peer, there, value, bytes, barrier_there, where);
}

// The asynchronous proxy sees what this block's threads have written, and its barriers.
inline void fence() {
  Block& block = *running->block;
  for (auto& [at, barrier] : block.barriers) barrier.fenced = true;
  for (const Transfer& transfer : cluster.transfers) set_poison(transfer, false);
  block.shared.set_all_known();
  for (const Transfer& transfer : cluster.transfers) set_poison(transfer, true);
}

// The last thread of a block has returned: nothing may come any more, and somebody must have waited for what has.
inline void leave_transfers(const Block& block) {
  const std::string who = "block " + text(block.index) + " returns ";
  for (const Transfer& transfer : cluster.transfers)
    if (transfer.target == &block) fail(who + "while a transfer to it is on its way");
  for (const auto& [at, barrier] : block.barriers) {
    if (barrier.bytes < 0) fail(who + "without having expected what has come");
    if (barrier.phases_with_bytes > barrier.seen) fail(who + "without having waited for what has come");
  }
}

}  // namespace emu
