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

// Elements [begin, end) from one dtype to another.
template <bool kStream, class From, class To>
void convert(const From* from, int64_t begin, int64_t end, To* to) {
  map_vectors(std::bool_constant<kStream>{}, to, begin, end,
              [=](int64_t at, int64_t n) NORMEXT_INLINE { return load(from + at, n); });
}

// Past the caches, or not.
template <class From, class To>
void convert(bool streamed, const From* from, int64_t begin, int64_t end, To* to) {
  streamed ? convert<true>(from, begin, end, to) : convert<false>(from, begin, end, to);
}

// From numbers of type X to an array of dtype, where element 0 stands at `to`.
template <class X>
void convert_to(DType dtype, bool streamed, const X* from, int64_t begin, int64_t end, void* to, int64_t at) {
  with_type<X>(dtype, [&]<class D>(Type<D>) { convert(streamed, from, begin, end, static_cast<D*>(to) + at); });
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
  // Array i, rounded, to `at` elements after `gradients`, if these are wanted; past the caches, or not.
  void store_line(int i, void* gradients, int64_t at = 0, bool streamed = false) const {
    if (gradients) convert_to<S>(dtype_, streamed, array(i), 0, columns_, gradients, at);
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
