// row_sources.cuh -- what the rows that are normalized consist of, as a type: a template argument of the kernels.
#pragma once
#include "cuda/elements/parameters.cuh"

namespace normext::cuda {

// The input, of type T.
template <class T>
struct InputRows {
  using Element = T;
  static constexpr bool kAdds = false;
};

// Forward, input + residual, rounded to S and stored. Backward, those sums, and a gradient of theirs to be added.
// Either may be missing: kernels that few ask for serve those as well that have nothing to add.
template <class S>
struct SumRows {
  using Element = S;
  static constexpr bool kAdds = true;
};

// Calls f(Type<S>{}) for the type of the sums of inputs of type T.
template <class T, class F>
void with_sum_type(DType dtype, const F& f) {
  if constexpr (sizeof(T) == 2) {
    if (dtype == DType::float32) return f(Type<float>{});
  }
  f(Type<T>{});
}

}  // namespace normext::cuda
