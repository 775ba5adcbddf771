// dot_sums.h -- sums of bfloat16 by the processor's dot products (AVX512_BF16): a lane and instruction multiply two
// pairs and add them up in float32, and nothing is widened.
//
// They are taken about zero rather than about a shift, and subnormal numbers and products count as zero: good where
// sound() says so without eps, as it does unless the mean is far from zero or the variance next to it. What they are
// short of, MomentSums and GradientSums are for.
#pragma once
#include <algorithm>

#include "sums.h"

namespace normext::cpu::NORMEXT_ISA {

template <class T>
constexpr bool kDotSums = false;
template <class T>
struct DotMomentSums;
template <class T>
struct DotGradientSums;

#if defined(__AVX512BF16__)
template <>
constexpr inline bool kDotSums<BFloat16> = true;

using Pairs = __m512bh;
constexpr int64_t kPairLanes = 2 * kLanes;  // values

inline Pairs load_pairs(const BFloat16* p, int64_t count) {
  if (count == kPairLanes) return (Pairs)_mm512_loadu_si512(p);
  return (Pairs)_mm512_maskz_loadu_epi16((1u << count) - 1, p);
}
inline Pairs ones() { return (Pairs)_mm512_set1_epi16(0x3f80); }

// Sums of x and x^2. There are no coefficients, but an array must have an element.
template <>
struct DotMomentSums<BFloat16> {
  static constexpr bool kDot = true;
  static constexpr int kInputs = 1, kCoefficients = 1, kSums = 2;  // input; any
  Floats sums[2] = {};

  NORMEXT_INLINE void add(const Pairs (&in)[1]) {
    sums[0] = _mm512_dpbf16_ps(sums[0], in[0], ones());
    sums[1] = _mm512_dpbf16_ps(sums[1], in[0], in[0]);
  }
  DotMomentSums operator+(const DotMomentSums& o) const { return {{sums[0] + o.sums[0], sums[1] + o.sums[1]}}; }
};

// Sums of g, g * x and x.
template <>
struct DotGradientSums<BFloat16> {
  static constexpr bool kDot = true;
  static constexpr int kInputs = 2, kCoefficients = 1, kSums = 3;  // g, x; any
  Floats sums[3] = {};

  NORMEXT_INLINE void add(const Pairs (&in)[2]) {
    sums[0] = _mm512_dpbf16_ps(sums[0], in[0], ones());
    sums[1] = _mm512_dpbf16_ps(sums[1], in[0], in[1]);
    sums[2] = _mm512_dpbf16_ps(sums[2], in[1], ones());
  }
  DotGradientSums operator+(const DotGradientSums& o) const {
    return {{sums[0] + o.sums[0], sums[1] + o.sums[1], sums[2] + o.sums[2]}};
  }
};

// The sum over the elements [at, stop): at most kShort / 2 vectors of pairs, each two additions to a lane.
template <class Sum>
NORMEXT_INLINE inline Sum short_dot_sum(const BFloat16* const (&from)[Sum::kInputs], int64_t at, int64_t stop) {
  Sum chains[kChains];
  Pairs in[Sum::kInputs];
  const auto add = [&](Sum& chain, int64_t i, int64_t count) NORMEXT_INLINE {
    for (int k = 0; k < Sum::kInputs; ++k) in[k] = load_pairs(from[k] + i, count);
    chain.add(in);
  };
  for (; at + kChains * kPairLanes <= stop; at += kChains * kPairLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < kChains; ++i) add(chains[i], at + i * kPairLanes, kPairLanes);
  }
  for (; at + kPairLanes <= stop; at += kPairLanes) add(chains[0], at, kPairLanes);
  if (at < stop) add(chains[0], at, stop - at);
  return join(chains);
}

template <class Sum>
NORMEXT_INLINE inline void add_dot_sums(const BFloat16* const (&from)[Sum::kInputs], int64_t begin, int64_t end,
                                        Doubles (&totals)[Sum::kSums]) {
  for (int64_t at = begin, stop; at < end; at = stop) {
    stop = std::min(end, at + kShort / 2 * kPairLanes);
    const Sum sum = short_dot_sum<Sum>(from, at, stop);
    for (int i = 0; i < Sum::kSums; ++i) totals[i] += widen(sum.sums[i]);
  }
}

struct ColumnPairs {
  alignas(64) uint16_t low[32] = {}, high[32] = {};
  constexpr ColumnPairs() {
    for (uint16_t i = 0; i < 32; ++i) {
      low[i] = i / 2 + i % 2 * 32;
      high[i] = low[i] + 16;
    }
  }
};

// Adds the sums down `columns` columns of a few rows, at most kRowsAtOnce, to the columns' totals. Of each two rows, a
// column's two values stand side by side.
template <class Sum>
NORMEXT_INLINE inline void add_dot_column_sums(const BFloat16* const (&from)[Sum::kInputs], int64_t begin,
                                               int64_t stride, int64_t rows, int64_t columns,
                                               double* const (&totals)[Sum::kSums]) {
  static constexpr ColumnPairs kOrder;
  const __m512i low_order = _mm512_load_si512(kOrder.low), high_order = _mm512_load_si512(kOrder.high);
  for (int64_t column = 0; column < columns; column += kPairLanes) {
    const int64_t count = std::min(kPairLanes, columns - column);
    Sum low, high;
    for (int64_t r = 0; r < rows; r += 2) {
      Pairs lows[Sum::kInputs], highs[Sum::kInputs];
      for (int k = 0; k < Sum::kInputs; ++k) {
        const BFloat16* const p = from[k] + begin + r * stride + column;
        __builtin_prefetch(p + rows * stride, 0, 2);  // of the next rows: see Inputs::prefetch
        __builtin_prefetch(p + (rows + 1) * stride, 0, 2);
        const auto row = (__m512i)load_pairs(p, count);
        const auto next = r + 1 < rows ? (__m512i)load_pairs(p + stride, count) : __m512i{};
        lows[k] = (Pairs)_mm512_permutex2var_epi16(row, low_order, next);
        highs[k] = (Pairs)_mm512_permutex2var_epi16(row, high_order, next);
      }
      low.add(lows);
      high.add(highs);
    }
    for (int i = 0; i < Sum::kSums; ++i) {
      double* const to = totals[i] + column;
      store(to, load(to) + widen(low.sums[i]));
      if (count > kLanes) store(to + kLanes, load(to + kLanes) + widen(high.sums[i]));
    }
  }
}
#endif

}  // namespace normext::cpu::NORMEXT_ISA
