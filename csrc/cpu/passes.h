// passes.h -- the two passes every norm is made of, over a contiguous run of elements: sums over its vectors, and a map
// from its vectors to those of the output.
#pragma once
#include <algorithm>

#include "sums.h"

namespace normext::cpu::NORMEXT_ISA {

// Vectors of inputs at the same offset.
template <class T, int kInputs>
struct Inputs {
  const T* const (&from)[kInputs];

  NORMEXT_INLINE void operator()(int64_t at, int64_t count, Vector<T> (&x)[kInputs]) const {
    for (int i = 0; i < kInputs; ++i) x[i] = load(from[i] + at, count);
  }
  // Asks for what a later pass will read, while this one computes and writes. It need not be there.
  NORMEXT_INLINE void prefetch(int64_t at) const {
    for (int i = 0; i < kInputs; ++i) __builtin_prefetch(from[i] + at, 0, 2);
  }
};

// Adds Sum (sums.h) over the elements [begin, end) to totals: inputs(at, count, x) gives the vectors at `at`. The cut
// into vectors and short sums depends on begin and end alone.
template <class Sum, class Vector, class Inputs>
NORMEXT_INLINE inline void add_sums(int64_t begin, int64_t end, const Inputs& inputs,
                                    const Vector (&k)[Sum::kCoefficients], Doubles (&totals)[Sum::kSums]) {
  Vector x[Sum::kInputs];
  for (int64_t at = begin; at < end;) {
    Sum chains[kChains];
    const int64_t stop = std::min(end, at + kShort * kLanes);
    for (; at + kChains * kLanes <= stop; at += kChains * kLanes) {
#pragma GCC unroll 4
      for (int i = 0; i < kChains; ++i) {
        inputs(at + i * kLanes, kLanes, x);
        chains[i].add(x, k);
      }
    }
    for (; at + kLanes <= stop; at += kLanes) {
      inputs(at, kLanes, x);
      chains[0].add(x, k);
    }
    if (at < stop && end - begin >= kLanes) {  // a whole vector, less what has been added
      inputs(end - kLanes, kLanes, x);
      chains[0].add(x, k, {kLanes - (stop - at), kLanes});
    } else if (at < stop) {
      inputs(at, stop - at, x);
      chains[0].add(x, k, {0, stop - at});
    }
    at = stop;
    join(chains).flush(totals);
  }
}

// Calls f(at, count) for the vectors of [begin, end), the last of which may be shorter than the others.
template <class F>
NORMEXT_INLINE inline void for_vectors_once(int64_t begin, int64_t end, const F& f) {
  int64_t at = begin;
  for (; at + kLanes <= end; at += kLanes) f(at, int64_t{kLanes});
  if (at < end) f(at, end - at);
}

// The same, but the last vector may overlap the one before it instead, so f must not add up anything.
template <class F>
NORMEXT_INLINE inline void for_vectors(int64_t begin, int64_t end, const F& f) {
  int64_t at = begin;
  for (; at + kLanes <= end; at += kLanes) f(at, int64_t{kLanes});
  if (at == end) return;
  if (end - begin >= kLanes)
    f(end - kLanes, int64_t{kLanes});
  else
    f(at, end - at);
}

// out[i] = f(i) for the elements [begin, end), where f(at, count) gives vectors. With kStream, past the caches: whole
// cache lines only, since streaming a part of a line and storing to the rest costs more than either.
template <bool kStream, class T, class F>
NORMEXT_INLINE inline void map_vectors(T* out, int64_t begin, int64_t end, const F& f) {
  const auto store_vectors = [&](int64_t from, int64_t to) NORMEXT_INLINE {
    for_vectors(from, to, [&](int64_t at, int64_t count) NORMEXT_INLINE { store(out + at, f(at, count), count); });
  };
  if constexpr (!kStream) {
    store_vectors(begin, end);
  } else {
    constexpr int64_t kLine = std::max<int64_t>(64 / sizeof(T), kLanes);  // elements, in whole vectors
    const int64_t before_line = -reinterpret_cast<uintptr_t>(out + begin) % 64 / sizeof(T);
    const int64_t first_line = std::min(end, begin + before_line), lines = (end - first_line) / kLine * kLine;
    store_vectors(begin, first_line);
    for (int64_t at = first_line; at < first_line + lines; at += kLanes) stream(out + at, f(at, kLanes));
    store_vectors(first_line + lines, end);
  }
}

}  // namespace normext::cpu::NORMEXT_ISA
