// kept.h -- g = dy * activation'(z), kept from the sums for the map that follows: SiLU's derivative takes three times
// as long as the rest of a pass. It is kept as it was computed, never rounded to a half type, so that the map gives the
// same bits as one that computes it again.
#pragma once
#include "cpu/elements/passes.h"

namespace normext::cpu::NORMEXT_ISA {

// dy and x, for a sum that leaves g in the place of dy: it is stored, from `kept` on, unless that is null.
template <class T, int64_t kAhead = 0>
struct KeepingInputs : Inputs<T, 2, kAhead> {
  Scalar<T>* kept;

  KeepingInputs(const Inputs<T, 2, kAhead>& in, Scalar<T>* kept) : Inputs<T, 2, kAhead>(in), kept(kept) {}

  NORMEXT_INLINE void keep(int64_t at, int64_t count, const Vector<T> (&x)[2]) const {
    if (kept) store(kept + at, x[0], count);
  }
  template <int64_t kBy = 0>
  KeepingInputs<T, kBy> after(int64_t offset) const {
    return {Inputs<T, 2, kAhead>::template after<kBy>(offset), kept};
  }
};

// g and x.
template <class T>
struct KeptInputs {
  const Scalar<T>* kept;
  const T* x;

  NORMEXT_INLINE void operator()(int64_t at, int64_t count, Vector<T> (&to)[2]) const {
    to[0] = load(kept + at, count);
    to[1] = load(x + at, count);
  }
  NORMEXT_INLINE void prefetch(int64_t at) const { __builtin_prefetch(x + at, 0, 2); }
  KeptInputs after(int64_t offset) const { return {kept, x + offset}; }
};

}  // namespace normext::cpu::NORMEXT_ISA
