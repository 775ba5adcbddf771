// misaligned.cuh -- rows that begin anywhere: their vectors are put together from aligned ones, and cut into such.
//
// A thread's vector is the same as in an aligned row, so the sums of a row do not depend on where it lies. Nothing
// outside of the row is read: its ends go element by element.
#pragma once
#include "vec.cuh"

namespace normext::cuda {

// The 16 bytes from byte `offset` on, up to 16, of two vectors that lie one behind the other.
__device__ inline uint4 bytes_from(const uint4& low, const uint4& high, unsigned offset) {
  unsigned w[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int step = 4; step > 0; step /= 2) {
    const bool moves = (offset / 4 & step) != 0;
#pragma unroll
    for (int i = 0; i + step < 8; ++i) w[i] = moves ? w[i + step] : w[i];
  }
  if (offset % 4 != 0) {  // of half types
#pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = w[i] >> 16 | w[i + 1] << 16;
  }
  return {w[0], w[1], w[2], w[3]};
}

template <class T>
__device__ unsigned misalignment(const T* p) {
  return static_cast<unsigned>(reinterpret_cast<uintptr_t>(p) % 16);  // bytes
}

// A vector of a row of `end` columns, zeros where it has ended.
template <class T, class Index>
__device__ Pack<T> load_misaligned(const T* row, Index column, Index end) {
  const T* const at = row + column;
  const unsigned skew = misalignment(at);
  const Index before = static_cast<Index>(skew / sizeof(T));
  if (column < before || column - before + 2 * kVec<T> > end) return Pack<T>::load(at, end - column);
  const auto* const vectors = reinterpret_cast<const uint4*>(at - before);
  return Pack<T>::of_bits(bytes_from(__ldg(vectors), __ldg(vectors + 1), skew));
}

// Stores the vectors of neighbouring lanes, kLanes of which share a row of `end` columns, next to each other. All lanes
// of the warp must take part; those with nothing to store have their column behind the end.
template <int kLanes, class T>
__device__ void store_misaligned(T* row, int column, int end, const Compute<T> (&v)[kVec<T>]) {
  constexpr int kGroup = kLanes < 32 ? kLanes : 32;
  const int lane = threadIdx.x % kGroup, count = end - column;
  T* const at = row + column;
  const unsigned skew = misalignment(at);
  // What an aligned vector holds of two lanes' vectors: the last elements of the one before, `head` of this one.
  const uint4 own = Pack<T>::of(v).bits();
  const uint4 before = {__shfl_up_sync(0xffffffffu, own.x, 1), __shfl_up_sync(0xffffffffu, own.y, 1),
                        __shfl_up_sync(0xffffffffu, own.z, 1), __shfl_up_sync(0xffffffffu, own.w, 1)};
  const int head = static_cast<int>((16 - skew) / sizeof(T));
  const bool whole = count >= head && (lane > 0 || skew == 0);
  if (whole) store16(at - skew / sizeof(T), bytes_from(before, own, 16 - skew));
  const bool next_takes_rest = lane + 1 < kGroup && count - kVec<T> >= head;
#pragma unroll
  for (int i = 0; i < kVec<T>; ++i)
    if (i < count && !(i < head ? whole : next_takes_rest)) at[i] = narrow<T>(v[i]);
}

}  // namespace normext::cuda
