// parameters.cuh -- weights, biases and running statistics one by one: of the input's dtype, or float32 for a half one.
#pragma once
#include "cuda/elements/vec.cuh"
#include "ops/types.h"

namespace normext::cuda {

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<P>{}) for the parameters of inputs of type T.
template <class T, class F>
__device__ void with_parameter_type(DType dtype, const F& f) {
  if constexpr (sizeof(T) == 2) {
    if (dtype == DType::float32) return f(Type<float>{});
  }
  f(Type<T>{});
}

// Parameter i; `otherwise` where there are none. By __ldg, which says that they are in global memory: for sm_100 nvcc
// has not found that out by itself.
template <class T>
__device__ double parameter(const void* parameters, DType dtype, int64_t i, double otherwise) {
  if (!parameters) return otherwise;
  if (sizeof(T) == 2 && dtype == DType::float32) return __ldg(static_cast<const float*>(parameters) + i);
  return widen(__ldg(static_cast<const T*>(parameters) + i));
}

template <class T>
__device__ void store_parameter(void* parameters, DType dtype, int64_t i, double value) {
  if (sizeof(T) == 2 && dtype == DType::float32)
    static_cast<float*>(parameters)[i] = static_cast<float>(value);
  else
    static_cast<T*>(parameters)[i] = narrow<T>(static_cast<Compute<T>>(value));
}

}  // namespace normext::cuda
