// buffer.h -- an array of any dtype on the heap, exactly as long as it says, read and written as doubles.
#pragma once
#include <sys/mman.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <vector>

#include "ops/types.h"

namespace normext::test {

inline bool is_half(DType dtype) { return dtype == DType::bfloat16 || dtype == DType::float16; }
inline int64_t size_of(DType dtype) { return dtype == DType::float64 ? 8 : is_half(dtype) ? 2 : 4; }
inline DType statistics_dtype(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }

// Half the distance from 1 to the next number: the relative error of rounding.
inline double unit(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return 0x1p-53;
    case DType::float32:
      return 0x1p-24;
    case DType::bfloat16:
      return 0x1p-8;
    default:
      return 0x1p-11;
  }
}

// The half types bit by bit, so that they share nothing with the conversions that the kernels use.
struct HalfFormat {
  int exponent_bits, mantissa_bits;
  explicit HalfFormat(DType dtype)
      : exponent_bits(dtype == DType::bfloat16 ? 8 : 5), mantissa_bits(15 - exponent_bits) {}
  int top() const { return (1 << exponent_bits) - 1; }
  int bias() const { return top() / 2; }

  double decode(uint16_t bits) const {
    const int exponent = bits >> mantissa_bits & top(), mantissa = bits & ((1 << mantissa_bits) - 1);
    const double sign = bits >> 15 ? -1.0 : 1.0;
    if (exponent == top()) {
      return sign * (mantissa ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity());
    }
    const int significand = exponent ? mantissa | 1 << mantissa_bits : mantissa;
    return sign * std::ldexp(significand, (exponent ? exponent : 1) - bias() - mantissa_bits);
  }

  // Truncates.
  uint16_t encode(double value) const {
    int exponent;
    const double fraction = std::frexp(std::fabs(value), &exponent);
    const int field = exponent - 1 + bias();
    const bool is_normal = value != 0 && field >= 1;
    const int mantissa = static_cast<int>(is_normal ? (2 * fraction - 1) * (1 << mantissa_bits)
                                                    : std::ldexp(std::fabs(value), bias() - 1 + mantissa_bits));
    return static_cast<uint16_t>((value < 0) << 15 | (is_normal ? field : 0) << mantissa_bits | mantissa);
  }
};

// Memory that ends where a page begins that nobody may touch. Masked vector instructions are invisible to
// AddressSanitizer; the page stops them too. Blocks are used again, and never given back to the system.
inline std::vector<char*>& free_blocks(int64_t size) {
  static std::map<int64_t, std::vector<char*>> blocks;
  return blocks[size];
}
struct FreeBlock {
  int64_t size;
  void operator()(char* start) const { free_blocks(size).push_back(start); }
};
using Block = std::unique_ptr<char, FreeBlock>;

inline Block take_block(int64_t bytes) {
  constexpr int64_t kPage = 65536;  // the largest page of any machine
  const int64_t size = (bytes + kPage - 1) / kPage * kPage;
  std::vector<char*>& blocks = free_blocks(size);
  if (blocks.empty()) {
    void* start = mmap(nullptr, size + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || mprotect(static_cast<char*>(start) + size, kPage, PROT_NONE) != 0) std::abort();
    blocks.push_back(static_cast<char*>(start));
  }
  Block block(blocks.back(), FreeBlock{size});
  blocks.pop_back();
  return block;
}

// There in a program linked with AddressSanitizer only. Its own header goes by how a source is compiled, and this one
// is not instrumented.
extern "C" [[gnu::weak]] void __asan_poison_memory_region(const volatile void* start, size_t size);
extern "C" [[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* start, size_t size);

// The array ends where its block does, or one element earlier with `shifted`: then it is aligned for its elements, and
// for no vector, whatever its size. AddressSanitizer knows the bytes on both sides as not the array's.
// An empty array is null, as an empty tensor's is.
class Buffer {
 public:
  Buffer(DType dtype, int64_t size, bool shifted)
      : dtype_(dtype),
        size_(size),
        block_(take_block(bytes() + size_of(dtype))),
        data_(block_.get() + block_.get_deleter().size - bytes() - (shifted ? size_of(dtype) : 0)) {
    if (__asan_poison_memory_region) {
      __asan_poison_memory_region(block_.get(), block_.get_deleter().size);
      __asan_unpoison_memory_region(data_, bytes());
    }
    forget();
  }

  // Every dtype reads these bytes as NaN: an element that a kernel forgot to write is never right.
  void forget() { std::memset(data_, 0xFF, bytes()); }

  void* data() const { return size_ ? data_ : nullptr; }
  int64_t size() const { return size_; }
  DType dtype() const { return dtype_; }

  double operator[](int64_t i) const {
    switch (dtype_) {
      case DType::float64:
        return load<double>(i);
      case DType::float32:
        return load<float>(i);
      default:
        return HalfFormat(dtype_).decode(load<uint16_t>(i));
    }
  }
  void set(int64_t i, double value) {
    switch (dtype_) {
      case DType::float64:
        return store(i, value);
      case DType::float32:
        return store(i, static_cast<float>(value));
      default:
        return store(i, HalfFormat(dtype_).encode(value));
    }
  }

 private:
  int64_t bytes() const { return size_ * size_of(dtype_); }
  template <class T>
  T load(int64_t i) const {
    T value;
    std::memcpy(&value, data_ + i * sizeof(T), sizeof(T));
    return value;
  }
  template <class T>
  void store(int64_t i, T value) {
    std::memcpy(data_ + i * sizeof(T), &value, sizeof(T));
  }

  DType dtype_;
  int64_t size_;
  Block block_;
  char* data_;
};

}  // namespace normext::test
