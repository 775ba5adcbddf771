// stash.cuh -- what a thread has read of a channel or group and keeps in shared memory, and the moments of that.
#pragma once
#include "cuda/elements/plane_walk.cuh"
#include "cuda/elements/sums.cuh"

namespace normext::cuda {

// A thread's vectors in shared memory, every kThreads-th of the array: without bank conflicts.
template <class T, int kSize, int kThreads>
class Stash {
 public:
  __device__ explicit Stash(T* shared) : mine_(shared + threadIdx.x * kSize) {}

  __device__ void push(const Vector<T, kSize>& v) {
    if constexpr (kSize == 1)
      mine_[pushed_] = v.value;
    else
      store16_shared(mine_ + pushed_, v.bits());
    pushed_ += kThreads * kSize;
  }
  __device__ void read(int i, Compute<T> (&out)[kSize]) const {
    const T* const at = mine_ + i * (kThreads * kSize);
    Vector<T, kSize> v;
    if constexpr (kSize == 1)
      v.value = *at;
    else
      v = Pack<T>::of_bits(*reinterpret_cast<const uint4*>(at));
#pragma unroll
    for (int e = 0; e < kSize; ++e) out[e] = v[e];
  }

 private:
  T* mine_;
  int pushed_ = 0;
};

// The vectors of a block's part of a channel, in full rounds of its threads.
inline int64_t stash_elements(const Planes& planes, int size, int threads, int cluster) {
  const int64_t vectors = planes.elements() / size;
  const int64_t of_block = (vectors + cluster - 1) / cluster;
  return (of_block + threads - 1) / threads * threads * size;
}

// The moments of a channel or group, from the sums of the block's values and the stash of them.
template <class T, int kSize, class Stashed, class GroupSum>
__device__ Moments moments_on_chip(MomentSums<Compute<T>> sum, Compute<T> (&shift)[1], const Stashed& stash, int count,
                                   double inverse_count, GroupSum& group_sum) {
  using A = Compute<T>;
  const auto of = [&](const MomentSums<A>& sums) {
    double totals[2];
    sums.totals(shift, totals);
    group_sum(totals);
    return Moments::of(totals, shift[0], inverse_count);
  };
  Moments moments = of(sum);
  if constexpr (std::is_same_v<A, double>) {  // nothing wider to sum in: once more, about the mean
    shift[0] = finite_or(moments.mean, 0.0);
    MomentSums<A> again;
    for (int i = 0; i < count; ++i) {
      A v[1][kSize];
      stash.read(i, v[0]);
      again.add(v, kSize);
    }
    moments = of(again);
  }
  return moments;
}

}  // namespace normext::cuda
