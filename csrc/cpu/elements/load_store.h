// load_store.h -- between memory and vectors, for every dtype: half types convert in registers.
//
// load and store move kLanes elements at any alignment; the forms with a count touch only the first `count`, and a
// partial load leaves zeros in the other lanes. stream stores past the caches, where it can, at addresses aligned to
// what it stores.
#pragma once
#include "cpu/elements/half_types.h"

namespace normext::cpu::NORMEXT_ISA {

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
NORMEXT_INLINE inline void store(BFloat16* p, NormalFloats x, NormalFloats y) { store_raw(p, narrow_bfloat16(x, y)); }

// Whole vectors, from anywhere to where vectors are aligned.
NORMEXT_INLINE inline void stream_bytes(const void* from, void* to, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kVectorBytes)
    stream_raw(static_cast<char*>(to) + i, load_raw<Words>(static_cast<const char*>(from) + i));
}

// Makes what was streamed visible to other threads, as stores are by themselves.
inline void end_of_stream() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// So far ahead, in elements, does an op on more than the second-level caches hold ask for its inputs where it passes
// over them: streamed lines and lines that are missing wait in the same few buffers, and the hardware does not look
// beyond a page of memory.
template <class T>
constexpr int64_t kAskAhead = 2048 / sizeof(T);

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

}  // namespace normext::cpu::NORMEXT_ISA
