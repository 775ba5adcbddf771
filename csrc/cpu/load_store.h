// load_store.h -- between memory and vectors, for every dtype: half types convert in registers.
//
// load and store move kLanes elements at any alignment; the forms with a count touch only the first `count`, and a
// partial load leaves zeros in the other lanes. stream stores past the caches, where it can, at addresses aligned to
// what it stores.
#pragma once
#include "simd.h"

namespace normext::cpu::NORMEXT_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

typedef uint16_t Shorts __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t ShortPair __attribute__((vector_size(kVectorBytes)));  // of two vectors of floats

// ------------------------------------------------------------------------------------------------ conversions
// Zero-extended, and the low halves; in intrinsics where g++ takes several instructions for what is one.
inline Words widen_bits(Shorts x) {
#if defined(__AVX512F__)
  return (Words)_mm512_cvtepu16_epi32((__m256i)x);
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu16_epi32((__m128i)x);
#else
  return __builtin_convertvector(x, Words);
#endif
}
inline Shorts narrow_bits(Words x) {  // x < 2^16
#if defined(__AVX512F__)
  return (Shorts)_mm512_cvtepi32_epi16((__m512i)x);
#elif defined(__AVX2__)
  return (Shorts)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
#else
  return __builtin_convertvector(x, Shorts);
#endif
}

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
  return _mm512_fpclass_ps_mask(x, kSubnormal) | _mm512_fpclass_ps_mask(y, kSubnormal);
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

// Two vectors at once, and numbers apart from what is rare. (The processor keeps a NaN's payload, round_to_bfloat16
// makes all of them one.)
inline ShortPair narrow_bfloat16(Floats x, Floats y) {
#if defined(__AVX512BF16__)
  if (!has_subnormal(x, y)) [[likely]]
    return (ShortPair)_mm512_cvtne2ps_pbh(y, x);
#elif defined(__AVX512F__)
  if (_mm512_cmp_ps_mask(x, y, _CMP_UNORD_Q) == 0) [[likely]]
    return upper_halves(round_number_to_bfloat16(x), round_number_to_bfloat16(y));
#elif defined(__AVX2__)
  if (_mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_UNORD_Q)) == 0) [[likely]]
    return upper_halves(round_number_to_bfloat16(x), round_number_to_bfloat16(y));
#elif defined(__x86_64__)
  if (_mm_movemask_ps(_mm_cmpunord_ps(x, y)) == 0) [[likely]]
    return upper_halves(round_number_to_bfloat16(x), round_number_to_bfloat16(y));
#endif
  return upper_halves(round_to_bfloat16(x), round_to_bfloat16(y));
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

// ------------------------------------------------------------------------------------------------ whole vectors
template <class V, class T>
V load_raw(const T* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

inline Floats load(const float* p) { return load_raw<Floats>(p); }
inline Doubles load(const double* p) {  // by halves: g++ copies what is larger than a register through the stack
  return {load_raw<Doubles::Half>(p), load_raw<Doubles::Half>(p + kLanes / 2)};
}
inline Floats load(const BFloat16* p) { return widen_bfloat16(load_raw<Shorts>(p)); }
inline Floats load(const Float16* p) { return widen_float16(load_raw<Shorts>(p)); }

template <class T, class V>
void store_raw(T* p, V v) {
  memcpy(p, &v, sizeof v);
}

inline void store(float* p, Floats x) { store_raw(p, x); }
inline void store(double* p, Doubles x) {
  store_raw(p, x.low);
  store_raw(p + kLanes / 2, x.high);
}
inline void store(BFloat16* p, Floats x) { store_raw(p, narrow_bfloat16(x)); }
inline void store(Float16* p, Floats x) { store_raw(p, narrow_float16(x)); }

template <class T, class V>
void stream_raw(T* p, V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof v == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#endif
#if defined(__AVX2__)
  if constexpr (sizeof v == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#endif
#if defined(__x86_64__)
  if constexpr (sizeof v == 16) return _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)v);
  if constexpr (sizeof v == 8) return _mm_stream_si64(reinterpret_cast<long long*>(p), (long long)v);
#endif
  store_raw(p, v);
}

inline void stream(float* p, Floats x) { stream_raw(p, x); }
inline void stream(double* p, Doubles x) {
  stream_raw(p, x.low);
  stream_raw(p + kLanes / 2, x.high);
}
inline void stream(BFloat16* p, Floats x) { stream_raw(p, narrow_bfloat16(x)); }
inline void stream(Float16* p, Floats x) { stream_raw(p, narrow_float16(x)); }

// Two vectors, one after the other.
template <class T>
NORMEXT_INLINE inline void store(T* p, Vector<T> x, Vector<T> y) {
  store(p, x);
  store(p + kLanes, y);
}
NORMEXT_INLINE inline void store(BFloat16* p, Floats x, Floats y) { store_raw(p, narrow_bfloat16(x, y)); }
template <class T>
NORMEXT_INLINE inline void stream(T* p, Vector<T> x, Vector<T> y) {
  stream(p, x);
  stream(p + kLanes, y);
}
NORMEXT_INLINE inline void stream(BFloat16* p, Floats x, Floats y) { stream_raw(p, narrow_bfloat16(x, y)); }

// Makes what was streamed visible to other threads, as stores are by themselves.
inline void end_of_stream() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// ------------------------------------------------------------------------------------------------ parts of vectors
// By halves, quarters and so on of a vector: a few moves of fixed sizes.
template <class T>
void copy_lanes(const T* from, T* to, int64_t count) {
#pragma GCC unroll 4
  for (int64_t part = kLanes / 2; part > 0; part /= 2) {
    if (!(count & part)) continue;
    memcpy(to, from, part * sizeof(T));
    from += part;
    to += part;
  }
}

#if defined(__AVX512F__)
inline uint32_t lane_mask(int64_t count) { return (1u << count) - 1; }

inline Floats load_part(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(lane_mask(count), p); }
inline Doubles load_part(const double* p, int64_t count) {
  const uint32_t mask = lane_mask(count);
  return {_mm512_maskz_loadu_pd(mask & 0xff, p), _mm512_maskz_loadu_pd(mask >> 8, p + 8)};
}
inline Floats load_part(const BFloat16* p, int64_t count) {
  return widen_bfloat16((Shorts)_mm256_maskz_loadu_epi16(lane_mask(count), p));
}
inline Floats load_part(const Float16* p, int64_t count) {
  return widen_float16((Shorts)_mm256_maskz_loadu_epi16(lane_mask(count), p));
}

inline void store_part(float* p, Floats x, int64_t count) { _mm512_mask_storeu_ps(p, lane_mask(count), x); }
inline void store_part(double* p, Doubles x, int64_t count) {
  const uint32_t mask = lane_mask(count);
  _mm512_mask_storeu_pd(p, mask & 0xff, x.low);
  _mm512_mask_storeu_pd(p + 8, mask >> 8, x.high);
}
#else
#if defined(__AVX2__)
inline Floats load_part(const float* p, int64_t count) { return _mm256_maskload_ps(p, (__m256i)lane_bits(0, count)); }
#endif
template <class T>
Vector<T> load_part(const T* p, int64_t count) {
  T lanes[kLanes] = {};
  copy_lanes(p, lanes, count);
  return load(lanes);
}
#endif
template <class T>  // for half types with AVX-512 too
void store_part(T* p, Vector<T> x, int64_t count) {
  T lanes[kLanes];
  store(lanes, x);
  copy_lanes(lanes, p, count);
}

template <class T>
NORMEXT_INLINE inline Vector<T> load(const T* p, int64_t count) {
  return count == kLanes ? load(p) : load_part(p, count);
}
template <class T>
NORMEXT_INLINE inline void store(T* p, Vector<T> x, int64_t count) {
  count == kLanes ? store(p, x) : store_part(p, x, count);
}

// ------------------------------------------------------------------------------------------------ single elements
template <class T>
Scalar<T> load_one(const T* p) {
  if constexpr (sizeof(T) == 2) {
    return load_part(p, 1)[0];
  } else {
    return *p;
  }
}

template <class T>
void store_one(T* p, double x) {
  if constexpr (sizeof(T) == 2) {
    store_part(p, broadcast(static_cast<float>(x)), 1);
  } else {
    *p = static_cast<T>(x);
  }
}

}  // namespace normext::cpu::NORMEXT_ISA
