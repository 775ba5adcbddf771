// maps.cuh -- how a vector is mapped, and what channel norms compute for its elements: norms alone, and those that an
// activation follows, perhaps with a residual added before it.
#pragma once
#include "cuda/elements/activation.cuh"
#include "cuda/elements/parameters.cuh"
#include "cuda/elements/plane_walk.cuh"

namespace normext::cuda {

template <class T, class Map>
using InputsOf = Inputs<T, Map::kInputs, Map::kOptional>;

// output[offset] = Map(in, k(i)), for element i of a vector of each input. Maps take elements one by one, or, with what
// they know at run time only, a vector at once, of which they may store something beside.
template <class T, int kSize, class Map, class K>
__device__ void map_vector(const Map& map, const Vector<T, kSize> (&in)[Map::kInputs], T* output, int64_t offset,
                           const K& k) {
  Compute<T> out[kSize];
  if constexpr (Map::kOfVectors) {
    Compute<T> x[Map::kInputs][kSize];
#pragma unroll
    for (int j = 0; j < Map::kInputs; ++j) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) x[j][i] = in[j][i];
    }
    map.apply(x, k, out);
    if constexpr (requires { map.beside; }) {
      if (map.beside) store_vector(map.beside + offset, x[0]);
      if (!output) return;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      Compute<T> x[Map::kInputs];
#pragma unroll
      for (int j = 0; j < Map::kInputs; ++j) x[j] = in[j][i];
      out[i] = Map::apply(x, k(i));
    }
  }
  store_vector(output + offset, out);
}

template <class T>
__device__ Compute<T> affine(const void* parameters, DType dtype, int64_t channel, double otherwise) {
  return static_cast<Compute<T>>(parameter<T>(parameters, dtype, channel, otherwise));
}

// ------------------------------------------------------------------------------------------------ maps
// y = (x - center) * scale + shift. The mean is center and a rest that a float32 cannot hold beside it, which is part
// of the shift: the difference is exact however far the mean is from zero.
struct Normalize {
  static constexpr int kInputs = 1, kCoefficients = 3;  // x; center, scale, shift
  static constexpr bool kOfVectors = false, kOptional = false;
  template <class A>
  __device__ static A apply(const A (&in)[1], const A (&k)[3]) {
    return fma(in[0] - k[0], k[1], k[2]);
  }
  template <class A>
  __device__ static void coefficients(double mean, double rstd, double weight, double bias, A (&k)[3]) {
    const double scale = rstd * weight;
    k[0] = static_cast<A>(mean);
    k[1] = static_cast<A>(scale);
    k[2] = static_cast<A>(bias - (isinf(mean) ? 0 : mean - static_cast<double>(k[0])) * scale);
  }
};

// y = activation((x - center) * scale + shift + residual): see Normalize.
template <class A, int kArrays>
struct ActivatedNormalize {
  static constexpr int kInputs = kArrays, kCoefficients = 3;  // x, residual; center, scale, shift
  static constexpr bool kOfVectors = true, kOptional = kArrays > 1;
  Activate<A> activation;

  template <int kSize, class K>
  __device__ void apply(const A (&in)[kArrays][kSize], const K& k, A (&y)[kSize]) const {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      y[i] = fma(in[0][i] - k(i)[0], k(i)[1], k(i)[2]);
      if constexpr (kArrays > 1) y[i] += in[1][i];
    }
    activation.apply(y);
  }
};

// dx = (g * weight + level + xhat * slope) * rstd, with g = dy * activation'(xhat * weight + bias + residual), which
// takes the place of dy.
template <class A, int kArrays>
struct ActivatedGradient {
  static constexpr int kInputs = kArrays, kCoefficients = 6;  // dy, x, residual; mean, rstd, weight, bias, slope, level
  static constexpr bool kOfVectors = true, kOptional = kArrays > 2;
  Activate<A> activation;

  template <int kSize, class K>
  __device__ void apply(A (&in)[kArrays][kSize], const K& k, A (&dx)[kSize]) const {
    A xhat[kSize], z[kSize];
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      xhat[i] = (in[1][i] - k(i)[0]) * k(i)[1];
      z[i] = fma(xhat[i], k(i)[2], k(i)[3]);
      if constexpr (kArrays > 2) z[i] += in[2][i];
    }
    activation.differentiate(z, in[0]);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      // In evaluation the slope is zero, and xhat may be infinite.
      const A slope = k(i)[4], sloped = slope == 0 ? A(0) : xhat[i];
      dx[i] = fma(sloped, slope, fma(in[0][i], k(i)[2], k(i)[5])) * k(i)[1];
    }
  }
};

// The same, of which g is stored too: it is the residual's gradient. That may be all that is asked for.
template <class T>
struct ActivatedGradients : ActivatedGradient<Compute<T>, 3> {
  T* beside;
};

// What the sums backward read.
template <class T, int kArrays>
struct ActivatedInputs : Inputs<T, kArrays, (kArrays > 2)> {
  Activate<Compute<T>> activation;
};

}  // namespace normext::cuda
