// vec.cuh -- elements in memory, 16 bytes at a time, and in registers, as the numbers that are computed with.
#pragma once
#include <cstring>
#include <type_traits>

#include "platform.cuh"

namespace normext::cuda {

// What a kernel computes in: float64 for float64, float32 for all others.
template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

template <class T>
constexpr int kVec = 16 / sizeof(T);  // elements of a vector: of the widest access there is on every architecture

__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(__half v) { return __half2float(v); }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T>
__device__ T narrow(Compute<T> v) {
  if constexpr (std::is_same_v<T, __half>) return __float2half_rn(v);
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16_rn(v);
  if constexpr (std::is_same_v<T, Compute<T>>) return v;
}

template <class To, class From>
__device__ To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(static_cast<void*>(&to), &from, sizeof(to));
  return to;
}

// A vector as it lies in memory. Half types stay packed: two of them a register, until they are computed with.
template <class T>
struct Pack {
  using A = Compute<T>;
  static constexpr int kSize = kVec<T>;
  unsigned words[4];

  __device__ static Pack load(const T* p) {  // p is aligned to 16 bytes
    const uint4 v = *reinterpret_cast<const uint4*>(p);
    return {{v.x, v.y, v.z, v.w}};
  }
  // The first `count` elements, one by one; zeros behind them.
  __device__ static Pack load(const T* p, int64_t count) {
    Pack pack{};
#pragma unroll
    for (int i = 0; i < kSize; ++i)
      if (i < count) pack.set(i, p[i]);
    return pack;
  }

  __device__ A operator[](int i) const {
    if constexpr (std::is_same_v<T, double>) {
      return bits_as<double>(uint2{words[2 * i], words[2 * i + 1]});
    } else if constexpr (std::is_same_v<T, float>) {
      return bits_as<float>(words[i]);
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      return bits_as<float>(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    } else {
      return __half2float(bits_as<__half>(static_cast<unsigned short>(words[i / 2] >> (i % 2 ? 16 : 0))));
    }
  }

 private:
  __device__ void set(int i, T value) {
    if constexpr (sizeof(T) == 8) {
      const auto bits = bits_as<uint2>(value);
      words[2 * i] = bits.x;
      words[2 * i + 1] = bits.y;
    } else if constexpr (sizeof(T) == 4) {
      words[i] = bits_as<unsigned>(value);
    } else {
      words[i / 2] |= static_cast<unsigned>(bits_as<unsigned short>(value)) << (i % 2 ? 16 : 0);
    }
  }
};

// Stores a vector with one access; p is aligned to 16 bytes. The words are put together by hand: from a struct of half
// elements, nvcc makes one store for each.
__device__ inline void store_vector(double* p, const double (&v)[2]) {
  *reinterpret_cast<double2*>(p) = double2{v[0], v[1]};
}
__device__ inline void store_vector(float* p, const float (&v)[4]) {
  *reinterpret_cast<float4*>(p) = float4{v[0], v[1], v[2], v[3]};
}
template <class T>
__device__ unsigned narrow_two(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) return bits_as<unsigned>(__half2_raw(__floats2half2_rn(low, high)));
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return bits_as<unsigned>(__nv_bfloat162_raw(__floats2bfloat162_rn(low, high)));
}
template <class T>
__device__ void store_vector(T* p, const float (&v)[8]) {
  *reinterpret_cast<uint4*>(p) =
      uint4{narrow_two<T>(v[0], v[1]), narrow_two<T>(v[2], v[3]), narrow_two<T>(v[4], v[5]), narrow_two<T>(v[6], v[7])};
}

// The same for the first `count` elements, one by one.
template <class T, int kSize>
__device__ void store_elements(T* p, const Compute<T> (&v)[kSize], int64_t count) {
#pragma unroll
  for (int i = 0; i < kSize; ++i)
    if (i < count) p[i] = narrow<T>(v[i]);
}

// Whether all arrays can be accessed by vectors; null ones are not accessed.
template <class... Pointers>
bool is_aligned(const Pointers*... arrays) {
  return ((reinterpret_cast<uintptr_t>(arrays) % 16 == 0) && ...);
}

}  // namespace normext::cuda
