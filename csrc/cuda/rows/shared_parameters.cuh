// shared_parameters.cuh -- a norm's weight, or weight and bias, in shared memory, where every row of a block finds
// them.
#pragma once
#include "cuda/elements/parameters.cuh"

namespace normext::cuda {

// Bytes of one of them: for whole vectors of T.
template <class T, class P>
__host__ __device__ int64_t shared_parameter_bytes(int64_t capacity) {
  return (capacity + kVec<T> - 1) / kVec<T> * kVec<T> * static_cast<int64_t>(sizeof(P));
}
template <class T>
__host__ __device__ int64_t shared_parameter_bytes(DType param_dtype, int64_t capacity) {
  if (sizeof(T) == 2 && param_dtype == DType::float32) return shared_parameter_bytes<T, float>(capacity);
  return shared_parameter_bytes<T, T>(capacity);
}

// kCount of 1: the weight; of 2: the weight, then the bias.
template <class T, int kCount>
class SharedParameters {
 public:
  using A = Compute<T>;

  // With room for so many columns. weight_offset is added to the weight as it is read.
  __device__ SharedParameters(char* shared, DType dtype, int64_t capacity, A weight_offset)
      : shared_(shared), dtype_(dtype), capacity_(static_cast<int>(capacity)), weight_offset_(weight_offset) {}

  // Copies them, with all threads of the block; a barrier must follow. Ones stand for a weight that there is none of,
  // zeros for a bias, also behind the end. Of a weight alone, the second pointer is of no interest. Columns are counted
  // from `first` on.
  __device__ void fetch(const void* const (&from)[2], int64_t columns, int64_t first = 0) const {
    with_type([&]<class P>(Type<P>) {
#pragma unroll 1  // by the same code
      for (int k = 0; k < kCount; ++k) {
        const P* const all = static_cast<const P*>(k == 0 ? from[0] : from[1]);
        fetch(all ? all + first : nullptr, array<P>(k), narrow<P>(k == 0 ? 1 : 0), static_cast<int>(columns));
      }
    });
    await_copies();
  }

  // Calls f(Type<P>{}) for the parameters' type.
  template <class F>
  __device__ void with_type(const F& f) const {
    with_parameter_type<T>(dtype_, f);
  }

  // Of kVec<T> columns, kStep apart.
  template <int kStep, class P>
  __device__ void read(Type<P>, int column, A (&out)[kCount][kVec<T>]) const {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const P* const at = array<P>(k) + column;
      if constexpr (kStep > 1) {
#pragma unroll
        for (int i = 0; i < kVec<T>; ++i) out[k][i] = widen(at[i * kStep]);
      } else {
#pragma unroll
        for (int i = 0; i < kVec<T>; i += kVec<P>) {
          const auto pack = Pack<P>::of_bits(*reinterpret_cast<const uint4*>(at + i));
#pragma unroll
          for (int e = 0; e < kVec<P>; ++e) out[k][i + e] = pack[e];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kVec<T>; ++i) out[0][i] += weight_offset_;
  }

 private:
  template <class P>
  __device__ P* array(int k) const {
    return reinterpret_cast<P*>(shared_ + k * shared_parameter_bytes<T, P>(capacity_));
  }

  // By vectors as far as they go: `from` may be aligned where rows, which are no multiple of a vector, are not. Copies
  // are not waited for one by one, so there is nothing to gain from unrolled loops, which nvcc would make of these.
  template <class P>
  __device__ void fetch(const P* from, P* to, P otherwise, int columns) const {
    const int copied = from && reinterpret_cast<uintptr_t>(from) % 16 == 0 ? columns / kVec<P> * kVec<P> : 0;
#pragma unroll 1
    for (int c = threadIdx.x * kVec<P>; c < copied; c += blockDim.x * kVec<P>) copy16_to_shared(to + c, from + c);
    const int end = static_cast<int>(shared_parameter_bytes<T, P>(capacity_) / sizeof(P));
#pragma unroll 2
    for (int c = copied + threadIdx.x; c < end; c += blockDim.x)
      to[c] = from && c < columns ? __ldg(from + c) : otherwise;
  }

  char* shared_;
  DType dtype_;
  int capacity_;
  A weight_offset_;
};

}  // namespace normext::cuda
