// sums.h -- what the norms sum over a row or a channel, and how exactly.
//
// A kernel adds up to kShort vectors to a short sum (MomentSums, GradientSums) and flushes it into float64 totals. The
// short sum is made of kChains sums that do not wait for each other's additions. No float32 value goes through more
// than sixteen of them: its rounding stays within the last bits of a result. (Down columns, a short sum is of a few
// rows: columns.h.)
#pragma once
#include <cmath>

#include "cpu/elements/load_store.h"

namespace normext::cpu::NORMEXT_ISA {

constexpr int kChains = kVectorBytes == 64 ? 4 : 2;  // AVX2 has half the registers
constexpr int kShort = 8 * kChains;                  // vectors in a short sum

// Lanes of a vector that count.
struct Lanes {
  int64_t begin = 0, end = kLanes;
};

template <class V>
NORMEXT_INLINE inline V keep(V x, Lanes lanes) {
  return lanes.begin == 0 && lanes.end == kLanes ? x : keep_lanes(x, lanes.begin, lanes.end);
}

// What all kinds of sums are made of: vectors that are added up, each lane for itself.
template <class V, int kCount>
struct ShortSums {
  using Part = V;
  static constexpr int kSums = kCount;
  V sums[kCount] = {};

  ShortSums& operator+=(const ShortSums& other) {
    for (int i = 0; i < kCount; ++i) sums[i] = sums[i] + other.sums[i];
    return *this;
  }
  void flush(Doubles (&totals)[kCount]) const {
    for (int i = 0; i < kCount; ++i) totals[i] += widen(sums[i]);
  }
};

template <class Sum>
NORMEXT_INLINE inline Sum join(Sum (&chains)[kChains]) {
  chains[0] += chains[1];
  if constexpr (kChains == 4) {
    chains[2] += chains[3];
    chains[0] += chains[2];
  }
  return chains[0];
}

// ------------------------------------------------------------------------------------------------ mean and variance
// Count, mean and the sum of squared deviations of some elements, or none; two such merge exactly, unless both are none
// (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979).
struct Moments {
  double count = 0, mean = 0, m2 = 0;

  Moments& operator+=(const Moments& other) {
    const double total = count + other.count, delta = other.mean - mean;
    mean += delta * (other.count / total);
    m2 += other.m2 + delta * delta * (count * other.count / total);
    count = total;
    return *this;
  }
  double variance() const { return m2 / count; }
};

// Whether the mean lies within a deviation of zero: (x - mean) * rstd, multiplied out in float32, is off by one of its
// last bits there, and takes an instruction less.
inline bool near_zero(double mean, double rstd) { return std::abs(mean * rstd) <= 1; }

inline double reciprocal_std(double variance, double eps) { return 1.0 / std::sqrt(variance + eps); }

// Sums of d and d^2 for d = x - shift, in one pass and in float32, which leaves the mean and the variance as exact as
// float64 arithmetic rounded if the shift lies within a few deviations of the mean: see sound().
template <class T>
struct MomentSums : ShortSums<Vector<T>, 2> {
  static constexpr bool kDot = false;
  static constexpr int kInputs = 1, kCoefficients = 1;  // input; shift

  NORMEXT_INLINE void add(const Vector<T> (&in)[1], const Vector<T> (&shift)[1], Lanes lanes = {}) {
    const Vector<T> d = keep(in[0] - shift[0], lanes);
    this->sums[0] = this->sums[0] + d;
    this->sums[1] = fma(d, d, this->sums[1]);
  }
};

// The same, all in float64, for what is far from any guess, or so large or small that its squares leave float32: the
// difference of two float32 values is exact there and its square does not overflow. The shift is one of the n elements,
// so even if it is an outlier it adds its share to the variance, and the relative error of second - first^2 / n stays
// below n * 2^-53. float64 inputs have no wider type to be summed in: they are summed twice, the second time about the
// mean of the first.
template <class T>
struct WideMomentSums : ShortSums<Doubles, 2> {
  static constexpr bool kDot = false;
  static constexpr int kInputs = 1, kCoefficients = 1;

  NORMEXT_INLINE void add(const Vector<T> (&in)[1], const Vector<T> (&shift)[1], Lanes lanes = {}) {
    const Doubles d = keep(widen(in[0]) - widen(shift[0]), lanes);
    sums[0] += d;
    sums[1] = fma(d, d, sums[1]);
  }
};

template <class T>
constexpr bool kTwoPasses = sizeof(T) == sizeof(double);

// From sums of d and d^2, d = x - shift: doubles, or vectors of them.
template <class D>
D mean_from_sums(double count, D shift, D first) {
  return shift + first / count;
}
template <class D>
D m2_from_sums(double count, D first, D second) {
  const D m2 = second - first * (first / count);
  return m2 < 0 ? D{} : m2;  // NaN stays NaN
}
inline Moments moments_from_sums(double count, double shift, double first, double second) {
  return {count, mean_from_sums(count, shift, first), m2_from_sums(count, first, second)};
}

// Fewer elements are summed in float64 right away: errors of a few float32 sums do not average out.
constexpr double kFew = 16;

// Whether MomentSums in float32 were good: the shift lies within two deviations of the mean, or less for not so many
// elements, so that little cancels, and squares were neither too large for float32 nor so small that they are missed
// beside eps. Not so if there is a NaN.
template <class D>
auto sound(double count, D first, D second, double eps) {
  const D offset = first * first, variance = count * second - offset;  // both times count^2
  const double allowed = count < 4 * kFew ? count / kFew : 4;
  return (offset <= allowed * variance) & (variance > (0x1p-90 - eps) * (count * count)) & (second < 0x1p120);
}

// ------------------------------------------------------------------------------------------------ gradients
// Sums of g, g * xhat and xhat, for xhat = (x - mean) * rstd. The last would be zero, were the saved mean not rounded
// to float32: it tells by how much, in units of the deviation, and the gradients are corrected by it. That keeps them
// right for a mean a million times the deviation.
template <class T>
struct GradientSums : ShortSums<Vector<T>, 3> {
  static constexpr bool kDot = false;
  static constexpr int kInputs = 2, kCoefficients = 2;  // g, x; mean, rstd

  NORMEXT_INLINE void add(const Vector<T> (&in)[2], const Vector<T> (&k)[2], Lanes lanes = {}) {
    const Vector<T> g = keep(in[0], lanes), xhat = keep((in[1] - k[0]) * k[1], lanes);
    this->sums[0] = this->sums[0] + g;
    this->sums[1] = fma(g, xhat, this->sums[1]);
    this->sums[2] = this->sums[2] + xhat;
  }
};

// Sums of g and g * x, for half types: they make up for no rounding of the mean, which is far below theirs.
template <class T>
struct ProductSums : ShortSums<Vector<T>, 2> {
  static constexpr bool kDot = false;
  static constexpr int kInputs = 2, kCoefficients = 1;  // g, x; any

  NORMEXT_INLINE void add(const Vector<T> (&in)[2], const Vector<T> (&)[1], Lanes lanes = {}) {
    const Vector<T> g = keep(in[0], lanes);
    this->sums[0] = this->sums[0] + g;
    this->sums[1] = fma(g, in[1], this->sums[1]);
  }
};

// Makes a sum of g * xhat out of that of g * x, which float32 has taken, and says whether it may: both sums are far
// above products that float32 has not, and below its limit.
inline bool settle_products(double count, double mean, double rstd, double g, double& g_x) {
  const double about_mean = g_x - mean * g, least = 0x1p-100 * count, size = std::abs(about_mean);
  g_x = about_mean * rstd;
  return (std::abs(g) > least) & (size > least) & (size < 0x1p120);
}

struct Gradients {
  double g = 0, g_xhat = 0, xhat = 0;

  Gradients& operator+=(const Gradients& other) {
    g += other.g;
    g_xhat += other.g_xhat;
    xhat += other.xhat;
    return *this;
  }
  // What the rounded mean is off by, times rstd, over `count` elements; and the sum of g * xhat without it.
  double offset(double count) const { return xhat / count; }
  double corrected(double count) const { return g_xhat - offset(count) * g; }
};

}  // namespace normext::cpu::NORMEXT_ISA
