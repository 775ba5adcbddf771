// dot_sums.h -- sums of bfloat16 by dot products: two neighbours are multiplied and added to one lane of float32, by
// one instruction where the processor has it (AVX512_BF16), and elsewhere without being put into order first.
//
// They are taken about zero rather than about a shift, and subnormal numbers and products may count as zero: good where
// sound() says so without eps, as it does unless the mean is far from zero or the variance next to it. What they are
// short of, MomentSums and GradientSums are for.
#pragma once
#include <algorithm>
#include <type_traits>

#include "sums.h"

namespace normext::cpu::NORMEXT_ISA {

template <class T>
constexpr bool kDotSums = std::is_same_v<T, BFloat16>;

using Pairs = ShortPair;
constexpr int64_t kPairLanes = 2 * kLanes;  // values

// sum + a * b over each pair. A product of two bfloat16 is exact in float32.
NORMEXT_INLINE inline Floats dot(Floats sum, Pairs a, Pairs b) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#else
  const auto even = [](Pairs x) NORMEXT_INLINE { return (Floats)((Words)x << 16); };
  const auto odd = [](Pairs x) NORMEXT_INLINE { return (Floats)((Words)x & 0xffff0000); };
  return fma(odd(a), odd(b), fma(even(a), even(b), sum));
#endif
}

inline Pairs ones() { return Pairs{} + 0x3f80; }

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

// Sums of x and x^2. There are no coefficients, but an array must have an element.
struct DotMomentSums {
  static constexpr bool kDot = true;
  static constexpr int kInputs = 1, kCoefficients = 1, kSums = 2;  // input; any
  Floats sums[2] = {};

  NORMEXT_INLINE void add(const Pairs (&in)[1]) {
    sums[0] = dot(sums[0], in[0], ones());
    sums[1] = dot(sums[1], in[0], in[0]);
  }
  DotMomentSums operator+(const DotMomentSums& o) const { return {{sums[0] + o.sums[0], sums[1] + o.sums[1]}}; }
};

// Sums of g, g * x and x.
struct DotGradientSums {
  static constexpr bool kDot = true;
  static constexpr int kInputs = 2, kCoefficients = 1, kSums = 3;  // g, x; any
  Floats sums[3] = {};

  NORMEXT_INLINE void add(const Pairs (&in)[2]) {
    sums[0] = dot(sums[0], in[0], ones());
    sums[1] = dot(sums[1], in[0], in[1]);
    sums[2] = dot(sums[2], in[1], ones());
  }
  DotGradientSums operator+(const DotGradientSums& o) const {
    return {{sums[0] + o.sums[0], sums[1] + o.sums[1], sums[2] + o.sums[2]}};
  }
};

// The sum over the elements [at, stop) of a run from `begin`: at most kShort / 2 vectors of pairs, each two additions
// to a lane. kAhead as in Inputs.
template <class Sum, int64_t kAhead = 0>
NORMEXT_INLINE inline Sum short_dot_sum(const BFloat16* const (&from)[Sum::kInputs], int64_t begin, int64_t at,
                                        int64_t stop) {
  Sum chains[kChains];
  Pairs in[Sum::kInputs];
  const auto add = [&](Sum& chain, int64_t i) NORMEXT_INLINE {
    for (int k = 0; k < Sum::kInputs; ++k) {
      if constexpr (kAhead > 0) __builtin_prefetch(from[k] + i + kAhead, 0, 2);
      in[k] = load_pairs(from[k] + i, kPairLanes);
    }
    chain.add(in);
  };
  for (; at + kChains * kPairLanes <= stop; at += kChains * kPairLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < kChains; ++i) add(chains[i], at + i * kPairLanes);
  }
  for (; at + kPairLanes <= stop; at += kPairLanes) add(chains[0], at);
  if (at < stop) {
    for (int k = 0; k < Sum::kInputs; ++k) in[k] = load_last_pairs(from[k], begin, at, stop);
    chains[0].add(in);
  }
  return join(chains);
}

template <class Sum, int64_t kAhead = 0>
NORMEXT_INLINE inline void add_dot_sums(const BFloat16* const (&from)[Sum::kInputs], int64_t begin, int64_t end,
                                        Doubles (&totals)[Sum::kSums]) {
  for (int64_t at = begin, stop; at < end; at = stop) {
    stop = std::min(end, at + kShort / 2 * kPairLanes);
    const Sum sum = short_dot_sum<Sum, kAhead>(from, begin, at, stop);
    for (int i = 0; i < Sum::kSums; ++i) totals[i] += widen(sum.sums[i]);
  }
}

#if defined(__AVX512F__)
struct PairOrder {
  alignas(64) uint16_t low[32] = {}, high[32] = {};
  constexpr PairOrder() {
    for (uint16_t i = 0; i < 32; ++i) {
      low[i] = i / 2 + i % 2 * 32;
      high[i] = low[i] + 16;
    }
  }
};
constexpr PairOrder kPairOrder;
#endif

// Of two rows of columns: a column's two values side by side, half of the columns in `low`, the others in `high`.
struct Interleave {
#if defined(__AVX512F__)
  __m512i low_order = _mm512_load_si512(kPairOrder.low), high_order = _mm512_load_si512(kPairOrder.high);
#endif

  NORMEXT_INLINE void operator()(Pairs row, Pairs next, Pairs& low, Pairs& high) const {
#if defined(__AVX512F__)
    low = (Pairs)_mm512_permutex2var_epi16((__m512i)row, low_order, (__m512i)next);
    high = (Pairs)_mm512_permutex2var_epi16((__m512i)row, high_order, (__m512i)next);
#elif defined(__AVX2__)  // quarters of columns alternate: see put_in_order
    low = (Pairs)_mm256_unpacklo_epi16((__m256i)row, (__m256i)next);
    high = (Pairs)_mm256_unpackhi_epi16((__m256i)row, (__m256i)next);
#else
    low = __builtin_shufflevector(row, next, 0, 8, 1, 9, 2, 10, 3, 11);
    high = __builtin_shufflevector(row, next, 4, 12, 5, 13, 6, 14, 7, 15);
#endif
  }
};
inline void put_in_order([[maybe_unused]] Floats& low, [[maybe_unused]] Floats& high) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const Floats first = low;
  low = _mm256_permute2f128_ps(first, high, 0x20);
  high = _mm256_permute2f128_ps(first, high, 0x31);
#endif
}

// Adds the sums down `columns` columns of a few rows, at most kRowsAtOnce, to the columns' totals, of which there is
// room for whole vectors of pairs.
template <class Sum>
NORMEXT_INLINE inline void add_dot_column_sums(const BFloat16* const (&from)[Sum::kInputs], int64_t begin,
                                               int64_t stride, int64_t rows, int64_t columns,
                                               double* const (&totals)[Sum::kSums]) {
  const Interleave interleave;
  for (int64_t column = 0; column < columns; column += kPairLanes) {
    const int64_t count = std::min(kPairLanes, columns - column);
    Sum low, high;
    for (int64_t r = 0; r < rows; r += 2) {
      Pairs lows[Sum::kInputs], highs[Sum::kInputs];
      for (int k = 0; k < Sum::kInputs; ++k) {
        const BFloat16* const p = from[k] + begin + r * stride + column;
        __builtin_prefetch(p + rows * stride, 0, 2);  // of the next rows: see Inputs::prefetch
        __builtin_prefetch(p + (rows + 1) * stride, 0, 2);
        const Pairs row = load_pairs(p, count), next = r + 1 < rows ? load_pairs(p + stride, count) : Pairs{};
        interleave(row, next, lows[k], highs[k]);
      }
      low.add(lows);
      high.add(highs);
    }
    for (int i = 0; i < Sum::kSums; ++i) {
      double* const to = totals[i] + column;
      put_in_order(low.sums[i], high.sums[i]);
      store(to, load(to) + widen(low.sums[i]));
      store(to + kLanes, load(to + kLanes) + widen(high.sums[i]));
    }
  }
}

}  // namespace normext::cpu::NORMEXT_ISA
