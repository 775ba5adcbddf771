// emulator.h -- runs CUDA kernels on the CPU, and finds what they do wrong.
//
// A kernel compiled by g++ with this header runs one thread block (or cluster) at a time, each CUDA thread as a fiber.
// A fiber runs until it meets a warp collective or a barrier. That makes CUDA's rules checkable: lanes that never
// arrive, that have returned or are not in the mask, divergent barriers and deadlocks end in an emu::Error that names
// threads and lines. What is no error but a race shows as wrong values in one of the orders (schedule.h) in which
// warps, lanes and blocks can take turns. Wrong addresses are left to AddressSanitizer and UndefinedBehaviorSanitizer.
//
// It says nothing of speed, of the order in which memory is seen, or of the last bits of a result.
#pragma once
#include <cuda_bf16.h>  // the half types compute on the host, too
#include <cuda_fp16.h>
#include <driver_types.h>
#include <math.h>  // with its overloads in the global namespace, where nvcc has them

#include <algorithm>
#include <concepts>
#include <type_traits>

#include "launch.h"

namespace emu {

inline void* shared_array(const void* key, size_t bytes, EMU_WHERE) {
  return running->block->shared.static_array(key, bytes, {file, line});
}
inline void* dynamic_shared() { return running->block->shared.dynamic_array(); }

inline unsigned cluster_size() { return static_cast<unsigned>(cluster.blocks.size()); }
inline unsigned cluster_rank() { return blockIdx.x % cluster_size(); }

template <class T>
const T* cluster_peer(const T* shared, unsigned rank) {
  if (rank >= cluster_size()) fail(text(*running) + " asks for block " + std::to_string(rank) + " of its cluster");
  Block& peer = cluster.blocks[rank];
  if (running->has_arrived) {  // the peer may go on, overwrite what was there, and exit
    fail(text(*running) + " reads shared memory of block " + text(peer.index) + " before waiting for it");
  }
  if (peer.live == 0) fail(text(*running) + " reads shared memory of block " + text(peer.index) + ", which has exited");
  const void* there = running->block->shared.same_place_in(peer.shared, shared);
  if (!there) fail(text(*running) + " asks for the peer of what is not in shared memory");
  return static_cast<const T*>(there);
}

template <class T>
T shuffle(Op op, unsigned mask, T value, unsigned argument, int width, Where where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = collective(op, mask, bits, argument, static_cast<unsigned>(width), where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
inline unsigned vote(Op op, unsigned mask, int predicate, Where where) {
  return static_cast<unsigned>(collective(op, mask, predicate != 0, 0, kWarpSize, where));
}

}  // namespace emu

// CUDA's names.
inline const char* cudaGetErrorString(cudaError_t) { return "errors of the emulator are exceptions"; }
#define __launch_bounds__(...)

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = emu::kWarpSize, EMU_WHERE) {
  return emu::shuffle(emu::Op::shfl, mask, value, static_cast<unsigned>(lane), width, {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = emu::kWarpSize, EMU_WHERE) {
  return emu::shuffle(emu::Op::shfl_up, mask, value, delta, width, {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = emu::kWarpSize, EMU_WHERE) {
  return emu::shuffle(emu::Op::shfl_down, mask, value, delta, width, {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = emu::kWarpSize, EMU_WHERE) {
  return emu::shuffle(emu::Op::shfl_xor, mask, value, static_cast<unsigned>(lane_mask), width, {file, line});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_WHERE) {
  return emu::vote(emu::Op::ballot, mask, predicate, {file, line});
}
inline int __any_sync(unsigned mask, int predicate, EMU_WHERE) {
  return static_cast<int>(emu::vote(emu::Op::any, mask, predicate, {file, line}));
}
inline int __all_sync(unsigned mask, int predicate, EMU_WHERE) {
  return static_cast<int>(emu::vote(emu::Op::all, mask, predicate, {file, line}));
}
inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_WHERE) { emu::vote(emu::Op::syncwarp, mask, 0, {file, line}); }
inline void __syncthreads(EMU_WHERE) { emu::block_barrier({file, line}); }
inline int __syncthreads_or(int predicate, EMU_WHERE) {
  static const char key = 0;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  int* const votes = static_cast<int*>(emu::shared_array(&key, threads * sizeof(int), file, line));
  votes[(threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x] = predicate;
  emu::block_barrier({file, line});
  int any = 0;
  for (unsigned t = 0; t < threads; ++t) any |= votes[t] != 0;
  emu::block_barrier({file, line});
  return any;
}

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
void __stcs(T* to, std::type_identity_t<T> value) {
  *to = value;
}

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline float __fdividef(float a, float b) { return a / b; }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
// Rounded once: exact to the last bit for every float, as tried.
inline float __frsqrt_rn(float x) { return static_cast<float>(rsqrt(static_cast<double>(x))); }

// For the pairs of types that CUDA has an overload for: others are ambiguous there. NaN gives way to a number.
template <class A, class B>
concept EmuComparable = (std::floating_point<A> && std::floating_point<B>) ||
                        (std::integral<A> && std::integral<B> && sizeof(A) == sizeof(B));
template <class A, class B>
  requires EmuComparable<A, B>
constexpr auto min(A a, B b) -> decltype(a + b) {
  if constexpr (std::floating_point<A>) return fmin(a, b);
  return std::min<decltype(a + b)>(a, b);
}
template <class A, class B>
  requires EmuComparable<A, B>
constexpr auto max(A a, B b) -> decltype(a + b) {
  if constexpr (std::floating_point<A>) return fmax(a, b);
  return std::max<decltype(a + b)>(a, b);
}
