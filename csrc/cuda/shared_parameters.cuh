// shared_parameters.cuh -- LayerNorm's weight and bias in shared memory, where every row of a block finds them.
#pragma once
#include "parameters.cuh"

namespace normext::cuda {

// Bytes of one of them, and of both: whole vectors.
__host__ __device__ inline int64_t padded_bytes(int64_t columns, int64_t size) {
  return (columns * size + 15) / 16 * 16;
}

template <class T>
int64_t shared_parameter_bytes(DType param_dtype, int64_t columns) {
  const int64_t size = sizeof(T) == 2 && param_dtype == DType::float32 ? 4 : sizeof(T);
  return 2 * padded_bytes(columns, size);
}

template <class T>
class SharedParameters {
 public:
  using A = Compute<T>;

  __device__ SharedParameters(char* shared, DType dtype, int64_t columns)
      : shared_(shared), dtype_(dtype), columns_(static_cast<int>(columns)) {}

  template <class F>
  __device__ void with_type(const F& f) const {
    with_parameter_type<T>(dtype_, f);
  }

  // By all threads of the block; a barrier must follow. Ones for an absent weight, zeros for an absent bias.
  __device__ void fetch(const void* weight, const void* bias, bool aligned) const {
    with_type([&]<class P>(Type<P>) {
      fetch(static_cast<const P*>(weight), array<P>(0), A(1), aligned);
      fetch(static_cast<const P*>(bias), array<P>(1), A(0), aligned);
    });
  }

  // Of a vector of T's columns.
  template <class P>
  __device__ void read(Type<P>, int column, A (&weight)[kVec<T>], A (&bias)[kVec<T>]) const {
#pragma unroll
    for (int i = 0; i < kVec<T>; i += kVec<P>) {
      const auto w = Pack<P>::of_bits(*reinterpret_cast<const uint4*>(array<P>(0) + column + i));
      const auto b = Pack<P>::of_bits(*reinterpret_cast<const uint4*>(array<P>(1) + column + i));
#pragma unroll
      for (int k = 0; k < kVec<P>; ++k) {
        weight[i + k] = w[k];
        bias[i + k] = b[k];
      }
    }
  }

 private:
  template <class P>
  __device__ P* array(int which) const {
    return reinterpret_cast<P*>(shared_ + which * padded_bytes(columns_, sizeof(P)));
  }

  template <class P>
  __device__ void fetch(const P* from, P* to, A otherwise, bool aligned) const {
    if (aligned && from) {
      for (int c = threadIdx.x * kVec<P>; c < columns_; c += blockDim.x * kVec<P>)
        store16_shared(to + c, Pack<P>::load(from + c).bits());
    } else {
      for (int c = threadIdx.x; c < columns_; c += blockDim.x) to[c] = from ? __ldg(from + c) : narrow<P>(otherwise);
    }
  }

  char* shared_;
  DType dtype_;
  int columns_;
};

}  // namespace normext::cuda
