// dtypes.h -- from the dtypes of an op to the types of a kernel.
#pragma once
#include "load_store.h"
#include "ops/types.h"

namespace normext::cpu::NORMEXT_ISA {

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<input>{}, Type<parameters>{}): parameters are of the input's dtype, or float32 for a half input.
template <class F>
void with_types(DType dtype, DType param_dtype, const F& f) {
  const bool same = dtype == param_dtype;
  switch (dtype) {
    case DType::float64:
      return f(Type<double>{}, Type<double>{});
    case DType::float32:
      return f(Type<float>{}, Type<float>{});
    case DType::bfloat16:
      return same ? f(Type<BFloat16>{}, Type<BFloat16>{}) : f(Type<BFloat16>{}, Type<float>{});
    case DType::float16:
      return same ? f(Type<Float16>{}, Type<Float16>{}) : f(Type<Float16>{}, Type<float>{});
  }
}

// Element i of a per-channel array, or `otherwise` where there is no array.
template <class P>
double element_or(const P* array, int64_t i, double otherwise) {
  return array ? load_one(array + i) : otherwise;
}

}  // namespace normext::cpu::NORMEXT_ISA
