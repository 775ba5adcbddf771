// arrays.h -- working memory that has a number, or some, for each channel.
#pragma once
#include "cpu/elements/dtypes.h"
#include "cpu/elements/scratch.h"

namespace normext::cpu::NORMEXT_ISA {

// kArrays arrays with an element for each of `size` channels, or channels of slices.
template <class Number, int kArrays>
class ChannelArrays {
 public:
  explicit ChannelArrays(int64_t size) : size_(size), numbers_(kArrays * size) {}
  Number* operator[](int array) const { return numbers_ + array * size_; }

  // The first few of the arrays, each from `begin`; to be written, or to be read.
  template <class Element, int kCount>
  struct Arrays {
    Element* at[kCount];
  };
  template <int kCount>
  Arrays<Number, kCount> first(int64_t begin) const {
    return pointers<Number, kCount>(begin);
  }
  template <int kCount>
  Arrays<const Number, kCount> first_to_read(int64_t begin) const {
    return pointers<const Number, kCount>(begin);
  }

 private:
  template <class Element, int kCount>
  Arrays<Element, kCount> pointers(int64_t begin) const {
    Arrays<Element, kCount> arrays;
    for (int i = 0; i < kCount; ++i) arrays.at[i] = (*this)[i] + begin;
    return arrays;
  }

  int64_t size_;
  Scratch<Number> numbers_;
};

// The parameters of all channels in the type that is computed in, so that kernels do not depend on theirs.
template <class S>
struct ChannelParameters {
  ChannelArrays<S, 2> arrays;
  const S *weight, *bias;

  template <class P>
  ChannelParameters(Type<P>, const void* w, const void* b, int64_t channels)
      : arrays(channels), weight(arrays[0]), bias(arrays[1]) {
    load_array(static_cast<const P*>(w), channels, 1, arrays[0]);
    load_array(static_cast<const P*>(b), channels, 0, arrays[1]);
  }
};

}  // namespace normext::cpu::NORMEXT_ISA
