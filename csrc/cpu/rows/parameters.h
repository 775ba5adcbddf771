// parameters.h -- weight and bias widened to the type that is computed in, their gradients rounded to theirs.
#pragma once
#include "cpu/elements/dtypes.h"
#include "cpu/rows/rows.h"

namespace normext::cpu::NORMEXT_ISA {

// Calls f(Type<D>{}) for arrays of `dtype` beside numbers of type X: X itself, or a half type beside float32.
template <class X, class F>
void with_type(DType dtype, const F& f) {
  if constexpr (std::is_same_v<X, float>) {
    if (dtype == DType::bfloat16) return f(Type<BFloat16>{});
    if (dtype == DType::float16) return f(Type<Float16>{});
  }
  f(Type<X>{});
}

// Lines of numbers of type S in the place of those of `dtype`.
template <class S>
class Widened {
 public:
  Widened(DType dtype, int64_t columns, int arrays) : dtype_(dtype), columns_(columns), numbers_(columns * arrays) {}

  S* array(int i) const { return numbers_ + i * columns_; }
  // Array i made of what stands `at` elements after `parameters`, if there are any.
  const S* load(int i, const void* parameters, int64_t at = 0, double offset = 0) const {
    if (!parameters) return nullptr;
    with_type<S>(dtype_, [&]<class P>(Type<P>) {
      const Vector<S> plus = broadcast(static_cast<S>(offset));
      const P* const from = static_cast<const P*>(parameters) + at;
      for_vectors(0, columns_, [&](int64_t c, int64_t n) NORMEXT_INLINE {
        store(array(i) + c, NORMEXT_ISA::load(from + c, n) + plus, n);
      });
    });
    return array(i);
  }
  // Array i, rounded, to `at` elements after `gradients`, if these are wanted.
  void store_line(int i, void* gradients, int64_t at = 0) const {
    if (!gradients) return;
    with_type<S>(dtype_,
                 [&]<class P>(Type<P>) { store_array<P>(array(i), columns_, static_cast<P*>(gradients) + at); });
  }

 private:
  DType dtype_;
  int64_t columns_;
  Scratch<S> numbers_;
};

template <class Op>
bool has_lines(const Op& op) {
  return op.lines.rows_per_line < op.rows;
}

}  // namespace normext::cpu::NORMEXT_ISA
