// maps.h -- what channel norms compute for one vector: maps, and the sums of gradients that go through an activation.
// Coefficients of an activation come last.
#pragma once
#include "cpu/elements/activations.h"
#include "cpu/elements/sums.h"

namespace normext::cpu::NORMEXT_ISA {

// y = activation((x - high) * scale + shift). The mean is split into high + low, and low, which float32 cannot hold
// beside high, is part of the shift: the difference is exact however far the mean is from zero.
template <class T, class Activation = Identity>
struct Normalize {
  static constexpr int kInputs = 1, kCoefficients = 3 + Activation::kCoefficients;
  NORMEXT_INLINE static Vector<T> apply(const Vector<T> (&in)[1], const Vector<T> (&k)[kCoefficients]) {
    return Activation::apply(fma(in[0] - k[0], k[1], k[2]), k + 3);
  }
};

// The same of the sum with a residual.
template <class T, class Activation>
struct NormalizeAndAdd {
  static constexpr int kInputs = 2, kCoefficients = 3 + Activation::kCoefficients;  // x, residual
  NORMEXT_INLINE static Vector<T> apply(const Vector<T> (&in)[2], const Vector<T> (&k)[kCoefficients]) {
    return Activation::apply(fma(in[0] - k[0], k[1], k[2]) + in[1], k + 3);
  }
};

// g = dy * activation'(z), z = xhat * weight + bias + residual.
template <class T, class Activation>
struct GradientOfSum {
  static constexpr int kInputs = 3, kCoefficients = 4 + Activation::kCoefficients;  // dy, x, residual; mean, rstd, ...
  NORMEXT_INLINE static Vector<T> apply(const Vector<T> (&in)[3], const Vector<T> (&k)[kCoefficients]) {
    return Activation::gradient(in[0], fma((in[1] - k[0]) * k[1], k[2], k[3]) + in[2], k + 4);
  }
};

// The same without a residual.
template <class T, class Activation>
struct GradientOfNorm {
  static constexpr int kInputs = 2, kCoefficients = 4 + Activation::kCoefficients;  // dy, x; mean, rstd, weight, bias
  NORMEXT_INLINE static Vector<T> apply(const Vector<T> (&in)[2], const Vector<T> (&k)[kCoefficients]) {
    return Activation::gradient(in[0], fma((in[1] - k[0]) * k[1], k[2], k[3]), k + 4);
  }
};

// dx = g * weight * rstd, where the statistics are given.
template <class T, class Activation>
struct EvaluationGradientThrough {
  static constexpr int kInputs = 2, kCoefficients = 4 + Activation::kCoefficients;  // dy, x; mean, rstd, weight, bias
  NORMEXT_INLINE static Vector<T> apply(const Vector<T> (&in)[2], const Vector<T> (&k)[kCoefficients]) {
    return Activation::gradient(in[0], fma((in[1] - k[0]) * k[1], k[2], k[3]), k + 4) * (k[2] * k[1]);
  }
};

// dx = (g * weight + xhat * slope + level) * rstd, with xhat = (x - mean) * rstd and g = dy * activation'(z),
// z = xhat * weight + bias. (rstd joined to the slope would underflow in float32 for deviations of 1e30.)
template <class T, class Activation>
struct WeightedGradient {
  static constexpr int kInputs = 2, kCoefficients = 6 + Activation::kCoefficients;  // dy, x; as GradientsThrough, ...
  static constexpr int kSlope = 4, kLevel = 5;                                      // ... then slope and level
  NORMEXT_INLINE static Vector<T> apply(const Vector<T> (&in)[2], const Vector<T> (&k)[kCoefficients]) {
    const Vector<T> xhat = (in[1] - k[0]) * k[1];
    const Vector<T> g = Activation::gradient(in[0], fma(xhat, k[2], k[3]), k + 6);
    return fma(xhat, k[kSlope], fma(g, k[2], k[kLevel])) * k[1];
  }
};

// dx = dy * scale + (x * slope + level), where the mean is near zero.
template <class T>
struct GradientNearZero {
  static constexpr int kInputs = 2, kCoefficients = 3;  // dy, x; scale, slope, level
  NORMEXT_INLINE static Vector<T> apply(const Vector<T> (&in)[2], const Vector<T> (&k)[3]) {
    return fma(in[0], k[0], fma(in[1], k[1], k[2]));
  }
};

// Sums of g, g * xhat and xhat, as GradientSums, for g = dy * activation'(z).
template <class T, class Activation>
struct GradientsThrough : ShortSums<Vector<T>, 3> {
  static constexpr bool kDot = false;
  static constexpr int kInputs = 2, kCoefficients = 4 + Activation::kCoefficients;  // dy, x; mean, rstd, weight, bias

  NORMEXT_INLINE void add(const Vector<T> (&in)[2], const Vector<T> (&k)[kCoefficients], Lanes lanes = {}) {
    const Vector<T> normalized = (in[1] - k[0]) * k[1];
    const Vector<T> g = keep(Activation::gradient(in[0], fma(normalized, k[2], k[3]), k + 4), lanes);
    const Vector<T> xhat = keep(normalized, lanes);
    this->sums[0] = this->sums[0] + g;
    this->sums[1] = fma(g, xhat, this->sums[1]);
    this->sums[2] = this->sums[2] + xhat;
  }
};
template <class T>
struct GradientsThrough<T, Identity> : GradientSums<T> {};

// Calls f<Activation>() for the type of an op's activation.
template <class F>
void with_activation(Activation activation, const F& f) {
  switch (activation.kind) {
    case Activation::Kind::none:
      return f.template operator()<Identity>();
    case Activation::Kind::leaky_relu:
      return activation.slope == 0 ? f.template operator()<Relu>() : f.template operator()<LeakyRelu>();
    case Activation::Kind::silu:
      return f.template operator()<Silu>();
  }
}

// Whether (x - mean) * rstd may be multiplied out in the gradient, where `slope` is the factor of x then: the mean is
// near zero, and the factor does not leave float32, as it does for deviations of 1e30.
inline bool may_multiply_out(double mean, double rstd, double slope) {
  const double magnitude = std::abs(slope);
  return near_zero(mean, rstd) & (((magnitude > 0x1p-100) & (magnitude < 0x1p100)) | (slope == 0));
}

}  // namespace normext::cpu::NORMEXT_ISA
