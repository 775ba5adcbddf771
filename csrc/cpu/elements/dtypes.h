// dtypes.h -- from the dtypes of an op to the types of a kernel.
#pragma once
#include "cpu/elements/passes.h"
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

// Parameters in the type a kernel computes in, or `otherwise` where there is no array.
template <class P>
void load_array(const P* from, int64_t count, Scalar<P> otherwise, Scalar<P>* to) {
  if (!from) return static_cast<void>(std::fill_n(to, count, otherwise));
  for_vectors(0, count, [&](int64_t at, int64_t n) NORMEXT_INLINE { store(to + at, load(from + at, n), n); });
}

// Their gradients, rounded to their type; none if there is no array.
template <class P>
void store_array(const Scalar<P>* from, int64_t count, P* to) {
  if (to) for_vectors(0, count, [&](int64_t at, int64_t n) NORMEXT_INLINE { store(to + at, load(from + at, n), n); });
}

}  // namespace normext::cpu::NORMEXT_ISA
