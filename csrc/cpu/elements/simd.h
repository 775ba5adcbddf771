// simd.h -- the small vector type of the CPU kernels: kLanes floats, or as many doubles.
//
// Built on the compiler's vector extensions, so that + - * come by themselves on every machine; intrinsics where there
// is no operator. Compiled once per instruction set, everything in its own namespace: were two sets to share an inline
// function, the linker would keep one, and run AVX-512 where there is none.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// For what is called on every vector: inlined wherever it stands, lambdas too, even if the calls with a constant and
// those with a variable number of lanes become two copies.
#define NORMEXT_INLINE __attribute__((always_inline))
// For what has a loop over vectors: as a function of its own, it keeps in registers what it was called with.
#define NORMEXT_NOINLINE __attribute__((noinline))

namespace normext::cpu::NORMEXT_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / sizeof(float);

typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

// kLanes doubles take two registers.
struct Doubles {
  typedef double Half __attribute__((vector_size(kVectorBytes)));
  Half low, high;

  friend Doubles operator+(Doubles a, Doubles b) { return {a.low + b.low, a.high + b.high}; }
  friend Doubles operator-(Doubles a, Doubles b) { return {a.low - b.low, a.high - b.high}; }
  friend Doubles operator*(Doubles a, Doubles b) { return {a.low * b.low, a.high * b.high}; }
  Doubles& operator+=(Doubles b) { return *this = *this + b; }
};

// The type a kernel computes in: float for float and the half types, double for double.
template <class T>
struct Compute {
  using Scalar = float;
  using Vector = Floats;
};
template <>
struct Compute<double> {
  using Scalar = double;
  using Vector = Doubles;
};
template <class T>
using Scalar = typename Compute<T>::Scalar;
template <class T>
using Vector = typename Compute<T>::Vector;

// x - 0 and not x + 0, which would lose the sign of a negative zero
inline Floats broadcast(float x) { return x - Floats{}; }
inline Doubles broadcast(double x) { return {x - Doubles::Half{}, x - Doubles::Half{}}; }

inline Doubles widen(Doubles x) { return x; }
inline Doubles widen(Floats x) {
#if defined(__AVX512F__)
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(x)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))};
#elif defined(__AVX2__)
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
#elif defined(__x86_64__)
  return {_mm_cvtps_pd(x), _mm_cvtps_pd(_mm_movehl_ps(x, x))};
#else
  typedef float HalfFloats __attribute__((vector_size(kVectorBytes / 2)));
  struct {
    HalfFloats low, high;
  } halves;
  memcpy(&halves, &x, sizeof x);
  return {__builtin_convertvector(halves.low, Doubles::Half), __builtin_convertvector(halves.high, Doubles::Half)};
#endif
}

// To the type a kernel computes in.
inline void narrow(Doubles from, Doubles& to) { to = from; }
inline void narrow(Doubles from, Floats& to) {
#if defined(__AVX512F__)
  to = _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(from.low)), _mm512_cvtpd_ps(from.high), 1);
#elif defined(__AVX2__)
  to = _mm256_set_m128(_mm256_cvtpd_ps(from.high), _mm256_cvtpd_ps(from.low));
#elif defined(__x86_64__)
  to = _mm_movelh_ps(_mm_cvtpd_ps(from.low), _mm_cvtpd_ps(from.high));
#else
  for (int i = 0; i < kLanes / 2; ++i) {
    to[i] = static_cast<float>(from.low[i]);
    to[i + kLanes / 2] = static_cast<float>(from.high[i]);
  }
#endif
}

// a * b + c, rounded once where the machine can (all but x86-64's baseline). Always spelled out, never left to the
// compiler, which fuses in one place and not in another: the same element must come out the same wherever it stands.
#if defined(__AVX512F__)
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Doubles fma(Doubles a, Doubles b, Doubles c) {
  return {_mm512_fmadd_pd(a.low, b.low, c.low), _mm512_fmadd_pd(a.high, b.high, c.high)};
}
#elif defined(__FMA__)
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Doubles fma(Doubles a, Doubles b, Doubles c) {
  return {_mm256_fmadd_pd(a.low, b.low, c.low), _mm256_fmadd_pd(a.high, b.high, c.high)};
}
#elif defined(__aarch64__)
inline Floats fma(Floats a, Floats b, Floats c) {
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
inline Doubles fma(Doubles a, Doubles b, Doubles c) {
  return {(Doubles::Half)vfmaq_f64((float64x2_t)c.low, (float64x2_t)a.low, (float64x2_t)b.low),
          (Doubles::Half)vfmaq_f64((float64x2_t)c.high, (float64x2_t)a.high, (float64x2_t)b.high)};
}
#else
inline Floats fma(Floats a, Floats b, Floats c) { return a * b + c; }
inline Doubles fma(Doubles a, Doubles b, Doubles c) { return a * b + c; }
#endif

// The sum of all lanes, halves added to halves: the order is the same on every call.
inline double sum(Doubles x) {
  const Doubles::Half lanes = x.low + x.high;
#if defined(__AVX512F__)
  return _mm512_reduce_add_pd(lanes);
#elif defined(__AVX2__)
  const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(lanes), _mm256_extractf128_pd(lanes, 1));
  return pair[0] + pair[1];
#else
  return lanes[0] + lanes[1];
#endif
}

// The sums of the lanes of kLanes vectors: lane i has that of vector i. Halves are added to halves.
template <int kHalf, int... kLane>
Floats add_halves(Floats a, Floats b, std::integer_sequence<int, kLane...>) {
  // Of each 2 * kHalf lanes: kHalf sums of lanes of a, then as many of b.
  constexpr auto from = [](int lane) { return lane & kHalf ? lane - kHalf + kLanes : lane; };
  return __builtin_shufflevector(a, b, from(kLane)...) + __builtin_shufflevector(a, b, (from(kLane) + kHalf)...);
}
template <int kCount>
NORMEXT_INLINE inline Floats sum_each(const Floats (&x)[kCount]) {
  if constexpr (kCount == 1) {
    return x[0];
  } else {
    constexpr int kHalf = kCount / 2;
    Floats sums[kHalf];
    for (int i = 0; i < kHalf; ++i)
      sums[i] = add_halves<kHalf>(x[i], x[i + kHalf], std::make_integer_sequence<int, kLanes>{});
    return sum_each(sums);
  }
}

// All bits set in lanes [begin, end).
inline Ints lane_bits(int64_t begin, int64_t end) {
  Ints lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return (lane >= static_cast<int32_t>(begin)) & (lane < static_cast<int32_t>(end));
}

// The lanes [begin, end); zero in the others.
inline Floats keep_lanes(Floats x, int64_t begin, int64_t end) { return (Floats)((Ints)x & lane_bits(begin, end)); }
inline Doubles keep_lanes(Doubles x, int64_t begin, int64_t end) {
  typedef int64_t Longs __attribute__((vector_size(kVectorBytes)));
  Longs low;
  for (int i = 0; i < kLanes / 2; ++i) low[i] = i;
  const Longs high = low + kLanes / 2;
  return {(Doubles::Half)((Longs)x.low & ((low >= begin) & (low < end))),
          (Doubles::Half)((Longs)x.high & ((high >= begin) & (high < end)))};
}

// Lanes before `lane`, which need not be one, are a's, and the others b's.
inline Floats blend(Floats a, Floats b, int64_t lane) {
#if defined(__AVX512F__)
  return _mm512_mask_blend_ps(static_cast<__mmask16>(0xffff << std::clamp<int64_t>(lane, 0, kLanes)), a, b);
#else
  return lane_bits(lane, kLanes) ? b : a;
#endif
}
inline Doubles blend(Doubles a, Doubles b, int64_t lane) {
  typedef int64_t Longs __attribute__((vector_size(kVectorBytes)));
  Longs low;
  for (int i = 0; i < kLanes / 2; ++i) low[i] = i;
  return {low >= lane ? b.low : a.low, low + kLanes / 2 >= lane ? b.high : a.high};
}

}  // namespace normext::cpu::NORMEXT_ISA
