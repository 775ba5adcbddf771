// vec.cuh -- elements in memory, 16 bytes at a time, and in registers, as the numbers that are computed with.
#pragma once
#include <cstring>
#include <type_traits>

#include "cuda/elements/platform.cuh"

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

// A vector as it lies in memory. Half types stay packed, two of them a register, until they are computed with.
//
// Memory that is read is never written by the same kernel: loads say so, and need not wait for stores before them.
template <class T>
struct Pack {
  using A = Compute<T>;
  static constexpr int kSize = kVec<T>;
  unsigned words[4];

  __device__ static Pack load(const T* p) {  // p is aligned to 16 bytes
    return of_bits(__ldg(reinterpret_cast<const uint4*>(p)));
  }
  // Every kStep-th element from p on, one by one, up to p + reach; zeros from there on.
  template <int kStep>
  __device__ static Pack gather(const T* p, int64_t reach) {
    Pack pack{};
#pragma unroll
    for (int i = 0; i < kSize; ++i)
      if (i * kStep < reach) pack.set(i, __ldg(p + i * kStep));
    return pack;
  }
  __device__ static Pack of(const A (&v)[kSize]) {
    Pack pack{};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if constexpr (std::is_same_v<T, __half>) {
        pack.words[w] = bits_as<unsigned>(__half2_raw(__floats2half2_rn(v[2 * w], v[2 * w + 1])));
      } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        pack.words[w] = bits_as<unsigned>(__nv_bfloat162_raw(__floats2bfloat162_rn(v[2 * w], v[2 * w + 1])));
      } else if constexpr (std::is_same_v<T, float>) {
        pack.words[w] = bits_as<unsigned>(v[w]);
      } else {
        const auto bits = bits_as<uint2>(v[w / 2]);
        pack.words[w] = w % 2 ? bits.y : bits.x;
      }
    }
    return pack;
  }

  __device__ static Pack of_bits(uint4 v) { return {{v.x, v.y, v.z, v.w}}; }
  __device__ uint4 bits() const { return {words[0], words[1], words[2], words[3]}; }

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

// One element, where vectors do not fit; otherwise like a Pack.
template <class T>
struct Single {
  T value;

  __device__ static Single load(const T* p) { return {__ldg(p)}; }
  __device__ Compute<T> operator[](int) const { return widen(value); }
};

template <class T, int kSize>
using Vector = std::conditional_t<kSize == 1, Single<T>, Pack<T>>;

// Stores kSize elements with one access, for which p is aligned.
template <class T, int kSize>
__device__ void store_vector(T* p, const Compute<T> (&v)[kSize]) {
  if constexpr (kSize == 1)
    *p = narrow<T>(v[0]);
  else
    store16(p, Pack<T>::of(v).bits());
}

// Stores elements one by one to every kStep-th place from p on, up to p + reach.
template <int kStep, class T, int kSize>
__device__ void scatter(T* p, const Compute<T> (&v)[kSize], int64_t reach) {
#pragma unroll
  for (int i = 0; i < kSize; ++i)
    if (i * kStep < reach) p[i * kStep] = narrow<T>(v[i]);
}

// Whether all arrays can be accessed by vectors; null ones are not accessed.
template <class... Pointers>
bool is_aligned(const Pointers*... arrays) {
  return ((reinterpret_cast<uintptr_t>(arrays) % 16 == 0) && ...);
}

}  // namespace normext::cuda
