// activation.cuh -- what follows a channel norm, and its derivative: chosen at run time, for a vector at a time, so
// that a kernel is compiled once for all of them.
#pragma once
#include <cmath>

#include "cuda/elements/platform.cuh"
#include "ops/channel_norm.h"

namespace normext::cuda {

__device__ inline float quotient(float a, float b) { return __fdividef(a, b); }
__device__ inline double quotient(double a, double b) { return a / b; }

template <class A>
class Activate {
 public:
  explicit Activate(const Activation& activation) : kind_(activation.kind), slope_(static_cast<A>(activation.slope)) {}

  __device__ bool is_none() const { return kind_ == Activation::Kind::none; }

  // z becomes activation(z).
  template <int kSize>
  __device__ void apply(A (&z)[kSize]) const {
    if (kind_ == Activation::Kind::silu) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) z[i] = quotient(z[i], 1 + exp(-z[i]));
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
        const A s = quotient(A(1), 1 + exp(-z[i]));
        g[i] *= s * fma(z[i], 1 - s, A(1));
      }
    } else if (kind_ == Activation::Kind::leaky_relu) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) g[i] = z[i] > 0 ? g[i] : below_zero(g[i]);
    }
  }

 private:
  Activation::Kind kind_;
  A slope_;

  // Zero even if the value is infinite, where the slope is.
  __device__ A below_zero(A value) const { return slope_ == 0 ? A(0) : slope_ * value; }
};

}  // namespace normext::cuda
