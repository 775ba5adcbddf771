// maps.h -- what channel norms compute for one vector: maps, and the sums of gradients that go through an activation.
// Where one follows, a map or a sum carries it (Activate), and is Identity's otherwise.
#pragma once
#include "cpu/elements/activations.h"
#include "cpu/elements/sums.h"

namespace normext::cpu::NORMEXT_ISA {

// y = activation((x - high) * scale + shift), or that of the sum with a residual, which comes after x. The mean is
// split into high + low, and low, which float32 cannot hold beside high, is part of the shift: the difference is exact
// however far the mean is from zero.
template <class T, class Activation = Identity, bool kResidual = false>
struct Normalize {
  static constexpr int kInputs = kResidual ? 2 : 1, kCoefficients = 3;
  [[no_unique_address]] Activation activation = {};

  NORMEXT_INLINE Vector<T> apply(const Vector<T> (&in)[kInputs], const Vector<T> (&k)[3]) const {
    Vector<T> z = fma(in[0] - k[0], k[1], k[2]);
    if constexpr (kResidual) z = z + in[1];
    return activation.apply(z);
  }
};

// g * factor for g = dy * activation'(z), z = xhat * weight + bias, plus a residual.
template <class T, bool kResidual>
struct GradientThrough {
  static constexpr int kInputs = kResidual ? 3 : 2,
                       kCoefficients = 5;  // dy, x, residual; mean, rstd, weight, bias, ...
  Activate<T> activation;                  // ... factor

  NORMEXT_INLINE Vector<T> apply(const Vector<T> (&in)[kInputs], const Vector<T> (&k)[5]) const {
    Vector<T> z = fma((in[1] - k[0]) * k[1], k[2], k[3]);
    if constexpr (kResidual) z = z + in[2];
    return activation.gradient(in[0], z) * k[4];
  }
};

// dx = (g * weight + xhat * slope + level) * rstd, with xhat = (x - mean) * rstd and g = dy * activation'(z),
// z = xhat * weight + bias. (rstd joined to the slope would underflow in float32 for deviations of 1e30.)
template <class T, class Activation = Identity>
struct WeightedGradient {
  static constexpr int kInputs = 2, kCoefficients = 6;  // dy, x; mean, rstd, weight, bias, slope, level
  [[no_unique_address]] Activation activation = {};

  NORMEXT_INLINE Vector<T> apply(const Vector<T> (&in)[2], const Vector<T> (&k)[6]) const {
    const Vector<T> xhat = (in[1] - k[0]) * k[1];
    const Vector<T> g = activation.gradient(in[0], fma(xhat, k[2], k[3]));
    return fma(xhat, k[4], fma(g, k[2], k[5])) * k[1];
  }
};

// dx = dy * scale + (x * slope + level), where the mean is near zero.
template <class T>
struct GradientNearZero {
  static constexpr int kInputs = 2, kCoefficients = 3;  // dy, x; scale, slope, level
  NORMEXT_INLINE Vector<T> apply(const Vector<T> (&in)[2], const Vector<T> (&k)[3]) const {
    return fma(in[0], k[0], fma(in[1], k[1], k[2]));
  }
};

// Sums of g, g * xhat and xhat, as GradientSums, for g = dy * activation'(z), which is left in the place of dy.
template <class T>
struct GradientSumsThrough : ShortSums<Vector<T>, 3> {
  static constexpr bool kDot = false;
  static constexpr int kInputs = 2, kCoefficients = 4;  // dy, x; mean, rstd, weight, bias
  Activate<T> activation;

  explicit GradientSumsThrough(const Activate<T>& activation = Activate<T>()) : activation(activation) {}

  NORMEXT_INLINE void add(Vector<T> (&in)[2], const Vector<T> (&k)[4], Lanes lanes = {}) {
    const Vector<T> normalized = (in[1] - k[0]) * k[1];
    in[0] = activation.gradient(in[0], fma(normalized, k[2], k[3]));
    const Vector<T> g = keep(in[0], lanes), xhat = keep(normalized, lanes);
    this->sums[0] = this->sums[0] + g;
    this->sums[1] = fma(g, xhat, this->sums[1]);
    this->sums[2] = this->sums[2] + xhat;
  }
};

// Whether (x - mean) * rstd may be multiplied out in the gradient, where `slope` is the factor of x then: the mean is
// near zero, and the factor does not leave float32, as it does for deviations of 1e30.
inline bool may_multiply_out(double mean, double rstd, double slope) {
  const double magnitude = std::abs(slope);
  return near_zero(mean, rstd) & (((magnitude > 0x1p-100) & (magnitude < 0x1p100)) | (slope == 0));
}

}  // namespace normext::cpu::NORMEXT_ISA
