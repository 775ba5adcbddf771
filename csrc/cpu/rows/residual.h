// residual.h -- what surrounds a norm of sums: the addition before it, and between half types and float32 where sums
// are float32 beside half inputs.
#pragma once
#include "cpu/rows/parameters.h"

namespace normext::cpu::NORMEXT_ISA {

// sum = input + residual, of type X; the input may be of a half type beside float32.
template <class X>
class Additions {
 public:
  explicit Additions(const RowNormForward& op)
      : input_(op.input),
        dtype_(op.dtype),
        input_strides_(op.input_strides),
        residual_{static_cast<const X*>(op.residual), op.residual_strides} {}

  // Columns [begin, end) of a row, which begins at `to`.
  void add(int64_t row, int64_t begin, int64_t end, X* to) const {
    with_type<X>(dtype_, [&]<class D>(Type<D>) {
      const D* const in = StridedRows<D>{static_cast<const D*>(input_), input_strides_}[row];
      const X* const residual = residual_[row];
      map_vectors<false>(
          to, begin, end,
          [=](int64_t at, int64_t n) NORMEXT_INLINE { return load(in + at, n) + load(residual + at, n); },
          [=](int64_t at) NORMEXT_INLINE {
            __builtin_prefetch(in + at + kAskAhead<D>, 0, 2);
            __builtin_prefetch(residual + at + kAskAhead<X>, 0, 2);
          });
    });
  }

 private:
  const void* input_;
  DType dtype_;
  RowStrides input_strides_;
  StridedRows<X> residual_;
};

// Elements [begin, end) from one dtype to another.
template <bool kStream, class From, class To>
void convert(const From* from, int64_t begin, int64_t end, To* to) {
  map_vectors<kStream>(to, begin, end, [=](int64_t at, int64_t n) NORMEXT_INLINE { return load(from + at, n); });
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

}  // namespace normext::cpu::NORMEXT_ISA
