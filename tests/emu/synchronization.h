// synchronization.h -- where threads wait for each other: warp collectives and barriers.
//
// Whoever arrives last does the work for all and runs on; the others are runnable again.
#pragma once
#include <bit>

#include "hierarchy.h"

namespace emu {

[[noreturn, gnu::cold]] inline void fail(const Thread& t, const char* what) { fail(waiting(t) + what); }
[[noreturn, gnu::cold]] inline void fail(const char* what, const Thread& a, const Thread& b) {
  fail(what + waiting(a) + "; " + waiting(b));
}
[[noreturn, gnu::cold]] inline void fail_source(const Thread& t, unsigned lane) {
  fail(waiting(t) + ", shuffles from lane " + std::to_string(lane) + ", which " +
       (t.mask >> lane & 1 ? "has returned or never was" : "is not in the mask"));
}
[[noreturn, gnu::cold]] inline void fail_incomplete(const Barrier& barrier, Op op) {
  fail(text(*barrier.returned) + " has returned and will never reach the barrier of " +
       waiting(*barrier.first, op, barrier.where));
}

inline void wait_for(Thread& me, Op op, Where where) {
  me.op = op;
  me.where = where;
  me.warp->runnable &= ~me.bit();
}
inline void suspend_unless_runnable(const Thread& me) {
  if (!(me.warp->runnable & me.bit())) Fiber::suspend();
}

// The lane that `t` shuffles from, by CUDA's rules: within its group of `width` lanes, or its own.
inline unsigned source_lane(const Thread& t) {
  const unsigned first = t.lane & ~(t.width - 1), end = first + t.width;
  switch (t.op) {
    case Op::shfl:
      return first + (t.argument & (t.width - 1));
    case Op::shfl_up:
      return t.argument > t.lane - first ? t.lane : t.lane - t.argument;
    case Op::shfl_down:
      return t.argument >= end - t.lane ? t.lane : t.lane + t.argument;
    default:
      return (t.lane ^ t.argument) >= end ? t.lane : t.lane ^ t.argument;
  }
}

// All `lanes` of the warp have arrived: each gets its result.
inline void perform(Warp& warp, unsigned lanes) {
  uint64_t values[kWarpSize] = {};
  unsigned ballot = 0;
  for (unsigned rest = lanes; rest; rest &= rest - 1) {
    const unsigned lane = std::countr_zero(rest);
    values[lane] = warp.lanes[lane].value;
    if (values[lane]) ballot |= 1u << lane;
  }
  for (unsigned rest = lanes; rest; rest &= rest - 1) {
    Thread& t = warp.lanes[std::countr_zero(rest)];
    switch (t.op) {
      case Op::syncwarp:
        break;
      case Op::ballot:
        t.value = ballot;
        break;
      case Op::any:
        t.value = ballot != 0;
        break;
      case Op::all:
        t.value = ballot == lanes;
        break;
      default:
        const unsigned from = source_lane(t);
        if (!(lanes >> from & 1)) fail_source(t, from);
        t.value = values[from];
    }
  }
  warp.in_collective &= ~lanes;
  warp.runnable |= lanes;
}

// Performs the collective of the lanes in `mask` if all that have not returned are there. One that has returned never
// comes: a GPU may wait for it forever.
inline void try_perform(Warp& warp, unsigned mask) {
  const unsigned lanes = mask & warp.live;
  if (lanes == 0 || (warp.in_collective & lanes) != lanes) return;
  const Thread& first = warp.lanes[std::countr_zero(lanes)];
  if (lanes != mask) fail(first, ", waits for lanes of its mask that have returned");
  for (unsigned rest = lanes; rest; rest &= rest - 1) {
    const Thread& t = warp.lanes[std::countr_zero(rest)];
    if (t.op != first.op || t.mask != first.mask || t.where != first.where) {
      fail("lanes of one warp meet in different collectives: ", first, t);
    }
  }
  perform(warp, lanes);
}

inline uint64_t collective(Op op, unsigned mask, uint64_t value, unsigned argument, unsigned width, Where where) {
  Thread& me = *running;
  wait_for(me, op, where);
  if (!(mask & me.bit())) fail(me, ", is not in its own mask");
  if (width == 0 || width > kWarpSize || (width & (width - 1))) fail(me, ", has a width that is no power of 2 to 32");
  me.mask = mask;
  me.value = value;
  me.argument = argument;
  me.width = width;
  me.warp->in_collective |= me.bit();
  try_perform(*me.warp, mask);
  suspend_unless_runnable(me);
  return me.value;
}

// The running thread arrives; whether it was the last. CUDA lets returned threads miss a barrier. Kernels that count on
// it are hard to read: here it is an error.
inline bool arrive(Barrier& barrier, Op op, Where where) {
  Thread& me = *running;
  if (barrier.arrived++ == 0) {
    barrier.first = &me;
    barrier.where = where;
  }
  if (barrier.returned) fail_incomplete(barrier, op);
  if (where != barrier.where)
    fail("divergent barrier: " + waiting(*barrier.first, op, barrier.where) + "; " + waiting(me, op, where));
  if (barrier.arrived < barrier.expected) return false;
  barrier.arrived = 0;
  ++barrier.round;
  return true;
}

inline void block_barrier(Where where) {
  Thread& me = *running;
  Block& block = *me.block;
  wait_for(me, Op::syncthreads, where);
  if (arrive(block.barrier, Op::syncthreads, where)) {
    const size_t warps_per_block = cluster.warps.size() / cluster.blocks.size();
    Warp* const warps = &cluster.warps[(&block - cluster.blocks.data()) * warps_per_block];
    for (size_t w = 0; w < warps_per_block; ++w) warps[w].runnable = warps[w].live;
  }
  suspend_unless_runnable(me);
}

// The cluster's barrier in two steps: whoever has arrived may do something else before waiting for the others.
inline void cluster_arrive(Where where) {
  Thread& me = *running;
  if (me.has_arrived)
    fail(waiting(me, Op::cluster_barrier, me.arrived_at) + ", arrives again without having waited: " + text(where));
  me.has_arrived = true;
  me.arrived_at = where;
  me.round = cluster.barrier.round;
  if (!arrive(cluster.barrier, Op::cluster_barrier, where)) return;
  for (Warp& warp : cluster.warps) {
    warp.runnable |= warp.waits_for_cluster;
    warp.waits_for_cluster = 0;
  }
}

inline void cluster_wait(Where where) {
  Thread& me = *running;
  if (!me.has_arrived) fail(waiting(me, Op::cluster_barrier, where) + ", waits without having arrived");
  me.has_arrived = false;
  if (me.round != cluster.barrier.round) return;
  wait_for(me, Op::cluster_barrier, where);
  me.warp->waits_for_cluster |= me.bit();
  Fiber::suspend();
}

inline void leave(Barrier& barrier, Op op, const Thread& me) {
  barrier.returned = &me;
  if (barrier.arrived) fail_incomplete(barrier, op);
}

void leave_transfers(const Block& block);  // see transfers.h

// The running thread has come to the end of the kernel.
inline void return_from_kernel() {
  Thread& me = *running;
  Warp& warp = *me.warp;
  if (me.has_arrived) fail(waiting(me, Op::cluster_barrier, me.arrived_at) + ", returns without having waited");
  warp.live &= ~me.bit();
  warp.runnable &= ~me.bit();
  for (unsigned rest = warp.in_collective; rest; rest &= warp.in_collective & (rest - 1)) {
    try_perform(warp, warp.lanes[std::countr_zero(rest)].mask);  // it may have waited for this thread only
  }
  leave(me.block->barrier, Op::syncthreads, me);
  leave(cluster.barrier, Op::cluster_barrier, me);
  if (--me.block->live == 0) {
    leave_transfers(*me.block);
    me.block->shared.free();
  }
  --cluster.live;
}

}  // namespace emu
