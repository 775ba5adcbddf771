// layout.cuh -- how the tensors of channel norms lie in memory: in planes or with channels innermost, which are columns
// of a matrix; to be accessed by vectors or element by element.
#pragma once
#include <numeric>

#include "cuda/channels/columns.cuh"
#include "cuda/elements/plane_walk.cuh"
#include "ops/channel_norm.h"

namespace normext::cuda {

inline bool channels_innermost(const ChannelNormShape& shape) { return shape.channels_last || shape.plane == 1; }

inline Planes planes_of(const ChannelNormShape& shape) { return {shape.batch, shape.channels, shape.plane}; }

// Elements of an access, where arrays are aligned for vectors: all of a vector, or one.
template <class T>
int access_size(int64_t contiguous, bool aligned) {
  return aligned && contiguous % kVec<T> == 0 ? kVec<T> : 1;
}

// Calls f<kSize>() for accesses of such a size.
template <class T, class F>
auto with_access_size(int64_t contiguous, bool aligned, const F& f) {
  return access_size<T>(contiguous, aligned) > 1 ? f.template operator()<kVec<T>>() : f.template operator()<1>();
}

// Channels innermost: a row is a pixel, or several where the channels alone are no multiple of a vector.
// Planes: a row is a sample.
template <class T>
Columns columns_of(const ChannelNormShape& shape) {
  const int64_t elements = shape.batch * shape.channels * shape.plane;
  if (!channels_innermost(shape))
    return {shape.batch, shape.channels * shape.plane, Divisor(shape.channels), Divisor(shape.plane)};
  const int64_t several = shape.channels / std::gcd(shape.channels, int64_t{kVec<T>}) * kVec<T>;
  const int64_t width = elements % several == 0 && several <= Divisor::kMost ? several : shape.channels;
  return {elements / width, width, Divisor(shape.channels), Divisor(1)};
}

}  // namespace normext::cuda
