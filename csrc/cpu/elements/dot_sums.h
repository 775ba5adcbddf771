// dot_sums.h -- sums of bfloat16 as dot products: of x with itself, of g with x. A vector of them is taken apart into
// evens and odds, floats both once they are moved up or masked, where order would take twice as much.
//
// They are taken about zero rather than about a shift, so that a product of two bfloat16 is exact in float32: good
// where sound() says so, as it does unless the mean is far from zero or the variance next to it. What they are short
// of, MomentSums and GradientSums are for. (AVX512_BF16 has an instruction for two products and their sum. On an Intel
// Xeon it takes as long as four of float32's, and it takes subnormal numbers for zero.)
#pragma once
#include <algorithm>
#include <type_traits>

#include "cpu/elements/sums.h"

namespace normext::cpu::NORMEXT_ISA {

template <class T>
constexpr bool kDotSums = std::is_same_v<T, BFloat16>;

using Pairs = ShortPair;                    // neighbours: an even and an odd one in each lane of 32 bits
constexpr int64_t kPairLanes = 2 * kLanes;  // values

NORMEXT_INLINE inline Floats even(Pairs x) {
#if defined(__AVX512F__)
  // Not a shift, which waits for the one port of an Intel core that shifts 512 bits and also multiplies.
  const __m128i up = _mm_setr_epi8(-1, -1, 0, 1, -1, -1, 4, 5, -1, -1, 8, 9, -1, -1, 12, 13);
  return (Floats)_mm512_shuffle_epi8((__m512i)x, _mm512_broadcast_i32x4(up));
#else
  return (Floats)((Words)x << 16);
#endif
}
NORMEXT_INLINE inline Floats odd(Pairs x) { return (Floats)((Words)x & 0xffff0000); }

inline Pairs load_pairs(const BFloat16* p, int64_t count) {
  if (count == kPairLanes) return load_raw<Pairs>(p);
#if defined(__AVX512F__)
  return (Pairs)_mm512_maskz_loadu_epi16((1u << count) - 1, p);
#else
  BFloat16 lanes[kPairLanes] = {};
  const int64_t half = count >= kLanes ? kLanes : 0;
  if (half) memcpy(lanes, p, kLanes * sizeof *p);
  copy_lanes(p + half, lanes + half, count - half);
  return load_raw<Pairs>(lanes);
#endif
}

// The elements [at, stop), fewer than a vector, of a run from `begin`; zero in the other lanes.
inline Pairs load_last_pairs(const BFloat16* p, [[maybe_unused]] int64_t begin, int64_t at, int64_t stop) {
#if !defined(__AVX512F__)
  if (stop - begin >= kPairLanes) {  // a whole vector, less what came before
    typedef int16_t Index __attribute__((vector_size(kVectorBytes)));
    Index lane;
    for (int i = 0; i < kPairLanes; ++i) lane[i] = i;
    return load_raw<Pairs>(p + stop - kPairLanes) & (Pairs)(lane >= static_cast<int16_t>(kPairLanes - (stop - at)));
  }
#endif
  return load_pairs(p + at, stop - at);
}

// Sums of x and x^2. Coefficients are those of MomentSums and GradientSums, and not looked at.
struct DotMomentSums : ShortSums<Floats, 2> {
  static constexpr bool kDot = true;
  static constexpr int kInputs = 1, kCoefficients = 1;

  NORMEXT_INLINE void add(const Floats (&x)[1]) {
    sums[0] = sums[0] + x[0];
    sums[1] = fma(x[0], x[0], sums[1]);
  }
};

// What mean and variance are summed by first.
template <class T>
using FirstMomentSums = std::conditional_t<kDotSums<T>, DotMomentSums, MomentSums<T>>;

// Sums of g and g * x, where g is the first input, or that times the third.
template <bool kWeighted>
struct DotProductSums : ShortSums<Floats, 2> {
  static constexpr bool kDot = true;
  static constexpr int kInputs = kWeighted ? 3 : 2, kCoefficients = 2;  // grad_output, x, weight

  NORMEXT_INLINE void add(const Floats (&in)[kInputs]) {
    Floats g = in[0];
    if constexpr (kWeighted) g = g * in[2];
    sums[0] = sums[0] + g;
    sums[1] = fma(g, in[1], sums[1]);
  }
};

// Adds pairs: evens and odds, one after the other.
template <class Sum>
NORMEXT_INLINE inline void add_pairs(const Pairs (&in)[Sum::kInputs], Sum& evens, Sum& odds) {
  Floats x[Sum::kInputs];
  for (int k = 0; k < Sum::kInputs; ++k) x[k] = even(in[k]);
  evens.add(x);
  for (int k = 0; k < Sum::kInputs; ++k) x[k] = odd(in[k]);
  odds.add(x);
}

// The sum over the elements [at, stop) of a run from `begin`: at most kShort / 2 vectors of pairs, each two additions
// to a lane. kAhead as in Inputs.
template <class Sum, int64_t kAhead>
NORMEXT_INLINE inline Sum short_dot_sum(const BFloat16* const (&from)[Sum::kInputs], int64_t begin, int64_t at,
                                        int64_t stop) {
  Sum chains[kChains];
  Pairs in[Sum::kInputs];
  const auto add = [&](Sum& chain, int64_t i) NORMEXT_INLINE {
    for (int k = 0; k < Sum::kInputs; ++k) {
      if constexpr (kAhead > 0) __builtin_prefetch(from[k] + i + kAhead, 0, 2);
      in[k] = load_pairs(from[k] + i, kPairLanes);
    }
    add_pairs(in, chain, chain);
  };
  for (; at + kChains * kPairLanes <= stop; at += kChains * kPairLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < kChains; ++i) add(chains[i], at + i * kPairLanes);
  }
  for (; at + kPairLanes <= stop; at += kPairLanes) add(chains[0], at);
  if (at < stop) {
    for (int k = 0; k < Sum::kInputs; ++k) in[k] = load_last_pairs(from[k], begin, at, stop);
    add_pairs(in, chains[0], chains[0]);
  }
  return join(chains);
}

// Adds a few rows of `count` columns, at most a vector of pairs.
template <class Sum>
NORMEXT_INLINE inline void add_dot_rows(const BFloat16* const (&from)[Sum::kInputs], int64_t begin, int64_t stride,
                                        int64_t rows, int64_t count, Sum& evens, Sum& odds) {
  for (int64_t r = 0; r < rows; ++r) {
    Pairs in[Sum::kInputs];
    for (int k = 0; k < Sum::kInputs; ++k) {
      const BFloat16* const p = from[k] + begin + r * stride;
      __builtin_prefetch(p + rows * stride, 0, 2);  // of the next rows: see Inputs::prefetch
      in[k] = load_pairs(p, count);
    }
    add_pairs(in, evens, odds);
  }
}

// From evens and odds to the first half of both in order, and the second.
template <int... kLane>
void put_in_order(Floats& evens, Floats& odds, std::integer_sequence<int, kLane...>) {
  constexpr auto from = [](int lane) { return lane / 2 + lane % 2 * kLanes; };
  const Floats first = __builtin_shufflevector(evens, odds, from(kLane)...);
  odds = __builtin_shufflevector(evens, odds, (from(kLane) + kLanes / 2)...);
  evens = first;
}
inline void put_in_order(Floats& evens, Floats& odds) {
  put_in_order(evens, odds, std::make_integer_sequence<int, kLanes>{});
}

}  // namespace normext::cpu::NORMEXT_ISA
