// scratch.h -- uninitialized working memory, aligned to a cache line.
#pragma once
#include <cstdint>
#include <new>

namespace normext::cpu::NORMEXT_ISA {

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(count == 0 ? nullptr : static_cast<T*>(::operator new(count * sizeof(T), kAlignment))) {}
  ~Scratch() { ::operator delete(data_, kAlignment); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator T*() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  T* data_;
};

}  // namespace normext::cpu::NORMEXT_ISA
