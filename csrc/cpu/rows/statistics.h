// statistics.h -- what a row norm takes of a row, as a type: Centered is LayerNorm's, Uncentered RMSNorm's.
//
// Both speak of Moments (elements/sums.h): the uncentered ones are moments about zero, so their mean is zero and
// m2 / count is the mean square. Sums that an uncentered row does without keep their place and stay zero, which
// compiles to nothing.
#pragma once
#include "cpu/elements/passes.h"

namespace normext::cpu::NORMEXT_ISA {

// ------------------------------------------------------------------------------------------------ sums about zero
// As MomentSums, DotMomentSums and WideMomentSums, but of squares alone.
template <class T>
struct SquareSums : ShortSums<Vector<T>, 2> {
  static constexpr bool kDot = false;
  static constexpr int kInputs = 1, kCoefficients = 1;

  NORMEXT_INLINE void add(const Vector<T> (&in)[1], const Vector<T> (&)[1], Lanes lanes = {}) {
    const Vector<T> x = keep(in[0], lanes);
    this->sums[1] = fma(x, x, this->sums[1]);
  }
};

struct DotSquareSums : ShortSums<Floats, 2> {
  static constexpr bool kDot = true;
  static constexpr int kInputs = 1, kCoefficients = 1;

  NORMEXT_INLINE void add(const Floats (&x)[1]) { sums[1] = fma(x[0], x[0], sums[1]); }
};

template <class T>
struct WideSquareSums : ShortSums<Doubles, 2> {
  static constexpr bool kDot = false;
  static constexpr int kInputs = 1, kCoefficients = 1;

  NORMEXT_INLINE void add(const Vector<T> (&in)[1], const Vector<T> (&)[1], Lanes lanes = {}) {
    const Doubles x = keep(widen(in[0]), lanes);
    sums[1] = fma(x, x, sums[1]);
  }
};

// As GradientSums, ProductSums and DotProductSums, but of g * xhat or g * x alone, where xhat = x * rstd.
template <class T>
struct UncenteredGradientSums : ShortSums<Vector<T>, 3> {
  static constexpr bool kDot = false;
  static constexpr int kInputs = 2, kCoefficients = 2;  // g, x; any, rstd

  NORMEXT_INLINE void add(const Vector<T> (&in)[2], const Vector<T> (&k)[2], Lanes lanes = {}) {
    this->sums[1] = fma(keep(in[0], lanes), keep(in[1] * k[1], lanes), this->sums[1]);
  }
};

template <class T>
struct UncenteredProductSums : ShortSums<Vector<T>, 2> {
  static constexpr bool kDot = false;
  static constexpr int kInputs = 2, kCoefficients = 1;

  NORMEXT_INLINE void add(const Vector<T> (&in)[2], const Vector<T> (&)[1], Lanes lanes = {}) {
    this->sums[1] = fma(keep(in[0], lanes), in[1], this->sums[1]);
  }
};

template <bool kWeighted>
struct UncenteredDotProductSums : ShortSums<Floats, 2> {
  static constexpr bool kDot = true;
  static constexpr int kInputs = kWeighted ? 3 : 2, kCoefficients = 2;

  NORMEXT_INLINE void add(const Floats (&in)[kInputs]) {
    Floats g = in[0];
    if constexpr (kWeighted) g = g * in[2];
    sums[1] = fma(g, in[1], sums[1]);
  }
};

// ------------------------------------------------------------------------------------------------ the two policies
template <class T>
struct Centered {
  static constexpr bool kCentered = true;
  using FirstSums = FirstMomentSums<T>;  // what a row is summed by first
  using FloatSums = MomentSums<T>;       // in the input's own arithmetic, about a shift
  using WideSums = WideMomentSums<T>;    // in float64
  using Gradients = GradientSums<T>;
  using Products = ProductSums<T>;
  template <bool kWeighted>
  using DotProducts = DotProductSums<kWeighted>;

  // Whether float32 sums of products were good; makes the sum of g * xhat of that of g * x.
  static bool settle(double count, double mean, double rstd, double g, double& g_x) {
    return settle_products(count, mean, rstd, g, g_x);
  }
};

template <class T>
struct Uncentered {
  static constexpr bool kCentered = false;
  using FirstSums = std::conditional_t<kDotSums<T>, DotSquareSums, SquareSums<T>>;
  using FloatSums = SquareSums<T>;
  using WideSums = WideSquareSums<T>;
  using Gradients = UncenteredGradientSums<T>;
  using Products = UncenteredProductSums<T>;
  template <bool kWeighted>
  using DotProducts = UncenteredDotProductSums<kWeighted>;

  static bool settle(double count, double, double rstd, double, double& g_x) {
    const double size = std::abs(g_x), least = 0x1p-100 * count;
    g_x *= rstd;
    return (size > least) & (size < 0x1p120);
  }
};

}  // namespace normext::cpu::NORMEXT_ISA
