// activations.h -- what may follow a norm: z to activation(z), and to activation'(z).
#pragma once
#include "cpu/elements/simd.h"
#include "ops/channel_norm.h"

namespace normext::cpu::NORMEXT_ISA {

typedef int64_t Longs __attribute__((vector_size(kVectorBytes)));

inline Floats minus_absolute(Floats x) { return (Floats)((Ints)x | INT32_MIN); }
inline Doubles minus_absolute(Doubles x) {
  return {(Doubles::Half)((Longs)x.low | INT64_MIN), (Doubles::Half)((Longs)x.high | INT64_MIN)};
}

// Lanes of a where z is below zero, those of b elsewhere, and where z is NaN.
inline Floats where_negative(Floats z, Floats a, Floats b) { return z < 0 ? a : b; }
inline Doubles where_negative(Doubles z, Doubles a, Doubles b) {
  return {z.low < 0 ? a.low : b.low, z.high < 0 ? a.high : b.high};
}

// Those of a where z is above zero or NaN, zero elsewhere.
inline Floats zero_unless_above(Floats z, Floats a) { return z <= 0 ? Floats{} : a; }
inline Doubles zero_unless_above(Doubles z, Doubles a) {
  return {z.low <= 0 ? Doubles::Half{} : a.low, z.high <= 0 ? Doubles::Half{} : a.high};
}

// ------------------------------------------------------------------------------------------------ exponential function
// exp(x) for x of zero or less, off by one or two of the last bits; NaN stays NaN. With n the whole number next to
// x / ln 2, it is 2^n times the series of exp(x - n ln 2). Adding kRound leaves n in the last bits of the sum.

// x * 2^n, rounded once, where x is about 1 and 2^n may be below the smallest normal number.
inline Floats times_power_of_two(Floats x, Floats n) {
#if defined(__AVX512F__)
  return _mm512_scalef_ps(x, n);
#else
  const Ints power = __builtin_convertvector(n, Ints), half = power >> 1, rest = power - half;
  return x * (Floats)((half + 127) << 23) * (Floats)((rest + 127) << 23);
#endif
}

// Of the polynomials of degree six that begin with 1 + r the one nearest to exp(r), for |r| up to ln 2 / 2: off by at
// most 2^-28 of it, which takes the series one term more.
constexpr float kSeries[] = {0x1.6a23c0p-10f, 0x1.123a20p-7f, 0x1.5558f4p-5f, 0x1.555492p-3f, 0x1.fffffcp-2f, 1, 1};

inline Floats exp_below_zero(Floats x) {
  constexpr float kRound = 0x1.8p23f, kLog2e = 0x1.715476p0f, kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;
  const Floats least = broadcast(-104.0f), y = least > x ? least : x;
  const Floats n = fma(y, broadcast(kLog2e), broadcast(kRound)) - kRound;
  const Floats r = fma(n, broadcast(-kLn2Low), fma(n, broadcast(-kLn2High), y));
  Floats series = broadcast(kSeries[0]);
  for (int i = 1; i < 7; ++i) series = fma(series, r, broadcast(kSeries[i]));
  return times_power_of_two(series, n);
}

inline Doubles::Half exp_below_zero_half(Doubles::Half x) {
  using Half = Doubles::Half;
  constexpr double kRound = 0x1.8p52, kLog2e = 0x1.71547652b82fep0, kLn2High = 0x1.62e42fee00000p-1,
                   kLn2Low = 0x1.a39ef35793c76p-33;
  const Half y = x < -746.0 ? Half{} - 746.0 : x;
  const Half rounded = y * kLog2e + kRound, n = rounded - kRound;
  const Half r = (y - n * kLn2High) - n * kLn2Low;
  Half series = Half{} + 1.0 / 6227020800;
  for (const double factor : {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                              1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 1.0 / 2, 1.0, 1.0})
    series = series * r + factor;
  // 2^n in two steps, because it may be below the smallest normal number.
  const Longs power = (Longs)rounded - (Longs)(Half{} + kRound), half = power >> 1, rest = power - half;
  return series * (Half)((half + 1023) << 52) * (Half)((rest + 1023) << 52);
}
inline Doubles exp_below_zero(Doubles x) { return {exp_below_zero_half(x.low), exp_below_zero_half(x.high)}; }

// 1 / x to the last bit or two, for x from 1 to 2. (AVX-512's division takes as long as all the rest of a sigmoid.)
inline Floats reciprocal(Floats x) {
#if defined(__AVX512F__)
  const Floats near = _mm512_rcp14_ps(x);
  return fma(near, fma(-x, near, broadcast(1.0f)), near);
#else
  return 1.0f / x;
#endif
}
inline Doubles reciprocal(Doubles x) { return {1.0 / x.low, 1.0 / x.high}; }

// 1 / (1 + exp(-z)), and its derivative, which is value * (1 - value): both to the last bits, wherever z is.
template <class V>
struct Sigmoid {
  V value, slope;

  NORMEXT_INLINE explicit Sigmoid(V z) {
    const V small = exp_below_zero(minus_absolute(z)), larger = reciprocal(small + one(z)), smaller = small * larger;
    value = where_negative(z, smaller, larger);
    slope = smaller * larger;
  }

 private:
  static Floats one(Floats) { return broadcast(1.0f); }
  static Doubles one(Doubles) { return broadcast(1.0); }
};

// ------------------------------------------------------------------------------------------------ activations
struct Identity {
  template <class V>
  NORMEXT_INLINE V apply(V z) const {
    return z;
  }
  template <class V>
  NORMEXT_INLINE V gradient(V g, V) const {
    return g;
  }
};

// Any other, chosen at run time for a vector at a time, so that there is one copy of a kernel for them all: the branch
// always goes the same way.
template <class T>
class Activate {
 public:
  explicit Activate(const Activation& activation = {})
      : kind_(activation.kind), is_relu_(activation.slope == 0), slope_(broadcast(Scalar<T>(activation.slope))) {}

  NORMEXT_INLINE Vector<T> apply(Vector<T> z) const {
    if (kind_ == Activation::Kind::silu) return z * Sigmoid<Vector<T>>(z).value;
    // A slope of zero makes zeros of infinities too.
    return is_relu_ ? where_negative(z, Vector<T>{}, z) : where_negative(z, z * slope_, z);
  }

  // g * activation'(z). At zero a leaky_relu's is the slope, as in torch.
  NORMEXT_INLINE Vector<T> gradient(Vector<T> g, Vector<T> z) const {
    if (kind_ == Activation::Kind::silu) {
      const Sigmoid<Vector<T>> s(z);
      return g * fma(z, s.slope, s.value);
    }
    return is_relu_ ? zero_unless_above(z, g) : where_negative(Vector<T>{} - z, g, g * slope_);
  }

 private:
  Activation::Kind kind_;
  bool is_relu_;
  Vector<T> slope_;
};

}  // namespace normext::cpu::NORMEXT_ISA
