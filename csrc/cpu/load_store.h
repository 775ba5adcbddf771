// load_store.h -- between memory and vectors, for every dtype: half types convert in registers.
//
// load and store move kLanes elements at any alignment; the forms with a count touch only the first `count`, and a
// partial load leaves zeros in the other lanes.
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

// ------------------------------------------------------------------------------------------------ conversions
inline Floats widen_bfloat16(Shorts x) { return (Floats)(__builtin_convertvector(x, Words) << 16); }

inline Shorts narrow_bfloat16(Floats x) {
  const Words bits = (Words)x;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  return __builtin_convertvector(x == x ? rounded : Words{} + 0x7fc0, Shorts);
}

inline Floats widen_float16(Shorts x) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps((__m256i)x);
#elif defined(__F16C__)
  return _mm256_cvtph_ps((__m128i)x);
#else
  const Words half = __builtin_convertvector(x, Words);
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
  return __builtin_convertvector(half | ((bits >> 16) & 0x8000), Shorts);
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
inline Doubles load(const double* p) { return load_raw<Doubles>(p); }
inline Floats load(const BFloat16* p) { return widen_bfloat16(load_raw<Shorts>(p)); }
inline Floats load(const Float16* p) { return widen_float16(load_raw<Shorts>(p)); }

template <class T, class V>
void store_raw(T* p, V v) {
  memcpy(p, &v, sizeof v);
}

inline void store(float* p, Floats x) { store_raw(p, x); }
inline void store(double* p, Doubles x) { store_raw(p, x); }
inline void store(BFloat16* p, Floats x) { store_raw(p, narrow_bfloat16(x)); }
inline void store(Float16* p, Floats x) { store_raw(p, narrow_float16(x)); }

// ------------------------------------------------------------------------------------------------ parts of vectors
#if defined(__AVX512F__)
inline uint32_t lane_mask(int64_t count) { return (1u << count) - 1; }

inline Floats load(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(lane_mask(count), p); }
inline Doubles load(const double* p, int64_t count) {
  const uint32_t mask = lane_mask(count);
  return {_mm512_maskz_loadu_pd(mask & 0xff, p), _mm512_maskz_loadu_pd(mask >> 8, p + 8)};
}
inline Floats load(const BFloat16* p, int64_t count) {
  return widen_bfloat16((Shorts)_mm256_maskz_loadu_epi16(lane_mask(count), p));
}
inline Floats load(const Float16* p, int64_t count) {
  return widen_float16((Shorts)_mm256_maskz_loadu_epi16(lane_mask(count), p));
}

inline void store(float* p, Floats x, int64_t count) { _mm512_mask_storeu_ps(p, lane_mask(count), x); }
inline void store(double* p, Doubles x, int64_t count) {
  const uint32_t mask = lane_mask(count);
  _mm512_mask_storeu_pd(p, mask & 0xff, x.low);
  _mm512_mask_storeu_pd(p + 8, mask >> 8, x.high);
}
inline void store(BFloat16* p, Floats x, int64_t count) {
  _mm256_mask_storeu_epi16(p, lane_mask(count), (__m256i)narrow_bfloat16(x));
}
inline void store(Float16* p, Floats x, int64_t count) {
  _mm256_mask_storeu_epi16(p, lane_mask(count), (__m256i)narrow_float16(x));
}
#else
template <class T>
Vector<T> load(const T* p, int64_t count) {
  T lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}

template <class T>
void store(T* p, Vector<T> x, int64_t count) {
  T lanes[kLanes];
  store(lanes, x);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}
#endif

// ------------------------------------------------------------------------------------------------ single elements
template <class T>
Scalar<T> load_one(const T* p) {
  if constexpr (sizeof(T) == 2) {
    return load(p, 1)[0];
  } else {
    return *p;
  }
}

template <class T>
void store_one(T* p, double x) {
  if constexpr (sizeof(T) == 2) {
    store(p, broadcast(static_cast<float>(x)), 1);
  } else {
    *p = static_cast<T>(x);
  }
}

}  // namespace normext::cpu::NORMEXT_ISA
