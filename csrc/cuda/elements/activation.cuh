// activation.cuh -- what follows a channel norm, and its derivative: chosen at run time, for a vector at a time, so
// that a kernel is compiled once for all of them.
#pragma once
#include <cmath>

#include "cuda/elements/platform.cuh"
#include "ops/channel_norm.h"

namespace normext::cuda {

// 1 / (1 + exp(-z)) and what is missing from it to 1, both as exact where they are small as where they are not. The
// divisor is between 1 and 2, for which the fast division is as good as any.
template <class A>
struct Sigmoid {
  A value, rest;

  __device__ explicit Sigmoid(A z) {
    const A e = exp(-fabs(z)), large = quotient(A(1), 1 + e), small = e * large;
    value = z < 0 ? small : large;
    rest = z < 0 ? large : small;
  }

 private:
  __device__ static float quotient(float a, float b) { return __fdividef(a, b); }
  __device__ static double quotient(double a, double b) { return a / b; }
};

template <class A>
class Activate {
 public:
  explicit Activate(const Activation& activation) : kind_(activation.kind), slope_(static_cast<A>(activation.slope)) {}

  // z becomes activation(z).
  template <int kSize>
  __device__ void apply(A (&z)[kSize]) const {
    if (kind_ == Activation::Kind::silu) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) z[i] *= Sigmoid<A>(z[i]).value;
    } else if (kind_ == Activation::Kind::leaky_relu) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) z[i] = z[i] < 0 ? below_zero(z[i]) : z[i];
    }
  }

  // g becomes g * activation'(z).
  template <int kSize>
  __device__ void differentiate(const A (&z)[kSize], A (&g)[kSize]) const {
    if (kind_ == Activation::Kind::silu) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        const Sigmoid<A> s(z[i]);
        g[i] *= s.value * fma(z[i], s.rest, A(1));
      }
    } else if (kind_ == Activation::Kind::leaky_relu) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        // A ReLU's gradient goes through a NaN, as in torch.
        const bool through = slope_ == 0 ? !(z[i] <= 0) : z[i] > 0;
        g[i] = through ? g[i] : below_zero(g[i]);
      }
    }
  }

 private:
  Activation::Kind kind_;
  A slope_;

  // Zero even if the value is infinite, where the slope is.
  __device__ A below_zero(A value) const { return slope_ == 0 ? A(0) : slope_ * value; }
};

}  // namespace normext::cuda
