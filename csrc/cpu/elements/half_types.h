// half_types.h -- the half types, and conversions between vectors of them and of floats, in registers.
#pragma once
#include <type_traits>

#include "cpu/elements/simd.h"

namespace normext::cpu::NORMEXT_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

typedef uint16_t Shorts __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t ShortPair __attribute__((vector_size(kVectorBytes)));  // of two vectors of floats

#if !defined(__AVX512F__)
// Zero-extended, and the low halves; in intrinsics where g++ takes several instructions for what is one.
inline Words widen_bits(Shorts x) {
#if defined(__AVX2__)
  return (Words)_mm256_cvtepu16_epi32((__m128i)x);
#else
  return __builtin_convertvector(x, Words);
#endif
}
inline Shorts narrow_bits(Words x) {  // x < 2^16
#if defined(__AVX2__)
  return (Shorts)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
#else
  return __builtin_convertvector(x, Shorts);
#endif
}
#endif

// A bfloat16 is the upper half of a float32; rounding goes to nearest, ties to even.
inline Words round_number_to_bfloat16(Floats x) {  // not a NaN, of which it could make an infinity or zero
  const Words bits = (Words)x;
  return bits + 0x7fff + ((bits >> 16) & 1);
}
inline Words round_to_bfloat16(Floats x) { return x == x ? round_number_to_bfloat16(x) : Words{} + 0x7fc00000; }

#if defined(__AVX512BF16__)
// The processor's own rounding takes subnormal numbers for zero.
inline bool has_subnormal(Floats x, Floats y) {
  constexpr int kSubnormal = 0x20;
  return !_kortestz_mask16_u8(_mm512_fpclass_ps_mask(x, kSubnormal), _mm512_fpclass_ps_mask(y, kSubnormal));
}
#endif

#if defined(__AVX512F__)
// One shuffle instead of conversions and shifts.
struct UpperHalves {
  alignas(64) uint16_t from_shorts[32] = {}, from_words[32] = {};
  constexpr UpperHalves() {
    for (uint16_t i = 0; i < 32; ++i) from_shorts[i] = i / 2, from_words[i] = 2 * i + 1;
  }
};
constexpr UpperHalves kUpperHalves;

inline Floats widen_bfloat16(Shorts x) {
  const __m512i order = _mm512_load_si512(kUpperHalves.from_shorts);
  return (Floats)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, order, _mm512_castsi256_si512((__m256i)x));
}
inline ShortPair upper_halves(Words x, Words y) {
  return (ShortPair)_mm512_permutex2var_epi16((__m512i)x, _mm512_load_si512(kUpperHalves.from_words), (__m512i)y);
}
inline Shorts narrow_bfloat16(Floats x) {
#if defined(__AVX512BF16__)
  if (!has_subnormal(x, x)) [[likely]]
    return (Shorts)_mm512_cvtneps_pbh(x);
#endif
  return (Shorts)_mm512_castsi512_si256((__m512i)upper_halves(round_to_bfloat16(x), Words{}));
}
#else
inline Floats widen_bfloat16(Shorts x) { return (Floats)(widen_bits(x) << 16); }
inline Shorts narrow_bfloat16(Floats x) { return narrow_bits(round_to_bfloat16(x) >> 16); }
#if defined(__AVX2__)
inline ShortPair upper_halves(Words x, Words y) {
  const __m256i by_quarters = _mm256_packus_epi32((__m256i)(x >> 16), (__m256i)(y >> 16));
  return (ShortPair)_mm256_permute4x64_epi64(by_quarters, _MM_SHUFFLE(3, 1, 2, 0));
}
#elif defined(__x86_64__)
inline ShortPair upper_halves(Words x, Words y) {
  return (ShortPair)_mm_packs_epi32(_mm_srai_epi32((__m128i)x, 16), _mm_srai_epi32((__m128i)y, 16));
}
#else
inline ShortPair upper_halves(Words x, Words y) {
  return __builtin_shufflevector((ShortPair)x, (ShortPair)y, 1, 3, 5, 7, 9, 11, 13, 15);
}
#endif
#endif

inline bool has_nan(Floats x, Floats y) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(x, y, _CMP_UNORD_Q) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_UNORD_Q)) != 0;
#elif defined(__x86_64__)
  return _mm_movemask_ps(_mm_cmpunord_ps(x, y)) != 0;
#else
  const Ints nan = (x != x) | (y != y);
  int32_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= nan[i];
  return any != 0;
#endif
}

// Floats known to be no subnormal numbers, before they are computed: to round them takes no look for those.
struct NormalFloats {
  Floats value;
  operator Floats() const { return value; }
};
#if defined(__AVX512BF16__)
template <class T>
constexpr bool kLooksForSubnormals = std::is_same_v<T, BFloat16>;
#else
template <class T>
constexpr bool kLooksForSubnormals = false;
#endif

// Two vectors at once, and numbers apart from what is rare. (The processor keeps a NaN's payload, round_to_bfloat16
// makes all of them one.)
inline ShortPair narrow_bfloat16(Floats x, Floats y) {
#if defined(__AVX512BF16__)
  const auto rounded = (__m512i)_mm512_cvtne2ps_pbh(y, x);
  const bool none_is_zero = _mm512_testn_epi16_mask(rounded, _mm512_set1_epi16(0x7fff)) == 0;  // faster, and the rule
  if (none_is_zero || !has_subnormal(x, y)) [[likely]]
    return (ShortPair)rounded;
#else
  if (!has_nan(x, y)) [[likely]]
    return upper_halves(round_number_to_bfloat16(x), round_number_to_bfloat16(y));
#endif
  return upper_halves(round_to_bfloat16(x), round_to_bfloat16(y));
}
inline ShortPair narrow_bfloat16(NormalFloats x, NormalFloats y) {
#if defined(__AVX512BF16__)
  return (ShortPair)_mm512_cvtne2ps_pbh(y.value, x.value);
#else
  return narrow_bfloat16(x.value, y.value);
#endif
}

inline Floats widen_float16(Shorts x) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps((__m256i)x);
#elif defined(__F16C__)
  return _mm256_cvtph_ps((__m128i)x);
#else
  const Words half = widen_bits(x);
  // The exponent and mantissa move into place; a product mends the exponent's bias, of subnormals too.
  const Floats magnitude = (Floats)((half & 0x7fff) << 13) * 0x1p112f;
  const Words special = (Words)((half & 0x7c00) == 0x7c00) & 0x7f800000;  // infinity and NaN
  return (Floats)((Words)magnitude | special | ((half & 0x8000) << 16));
#endif
}

inline Shorts narrow_float16(Floats x) {
#if defined(__AVX512F__)
  return (Shorts)_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (Shorts)_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Words bits = (Words)x, magnitude = bits & 0x7fffffff;
  const Words normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding one half leaves multiples of 2^-24, the spacing of float16's subnormals, rounded by the adder.
  const Words subnormal = (Words)((Floats)magnitude + 0.5f) - 0x3f000000;
  Words half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x47800000 ? Words{} + 0x7c00 : half;
  half = x == x ? half : Words{} + 0x7e00;
  return narrow_bits(half | ((bits >> 16) & 0x8000));
#endif
}

}  // namespace normext::cpu::NORMEXT_ISA
