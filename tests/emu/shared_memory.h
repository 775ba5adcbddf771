// shared_memory.h -- the shared memory of one block.
//
// Each array is an allocation of its exact size: AddressSanitizer sees an access behind it, and one after the block has
// exited. It begins as NaN in every floating type, so that what is read before it was written shows.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#include "errors.h"

namespace emu {

constexpr size_t kMaxStaticBytes = 48 << 10;

class SharedMemory {
 public:
  // At the start of a block.
  void reset(size_t dynamic_bytes, size_t max_bytes) {
    arrays_.clear();
    dynamic_bytes_ = dynamic_bytes;
    max_bytes_ = max_bytes;
    static_bytes_ = 0;
  }
  void free() { arrays_.clear(); }

  // `key` tells one declaration from another.
  void* static_array(const void* key, size_t bytes, Where where) {
    if (void* data = find(key)) return data;
    static_bytes_ += bytes;
    if (static_bytes_ > kMaxStaticBytes || static_bytes_ + dynamic_bytes_ > max_bytes_) {
      fail("too much shared memory: " + std::to_string(static_bytes_) + " bytes static (at most " +
           std::to_string(kMaxStaticBytes) + ") and " + std::to_string(dynamic_bytes_) + " dynamic (at most " +
           std::to_string(max_bytes_) + " together) at " + text(where));
    }
    return add(key, bytes);
  }
  void* dynamic_array() {
    void* data = find(nullptr);
    return data ? data : add(nullptr, dynamic_bytes_);
  }

  // What stands at the same place in the memory of `peer` as `data` does here; nullptr if that is nowhere.
  void* same_place_in(SharedMemory& peer, const void* data) {
    const Array* const array = array_of(data);
    if (!array) return nullptr;
    void* const there = peer.find(array->key);
    return static_cast<char*>(there ? there : peer.add(array->key, array->bytes)) + array->offset_of(data);
  }

  // What the asynchronous proxy knows of the contents: how they began, what it has written itself, and what threads
  // had written before a fence.
  void set_known(const void* data, size_t bytes) {
    Array* const array = array_of(data);
    std::memcpy(array->known_contents() + array->offset_of(data), data, bytes);
  }
  void set_all_known() {
    for (Array& array : arrays_) std::memcpy(array.known_contents(), array.data.get(), array.bytes);
  }
  bool is_known(const void* data, size_t bytes) {
    Array* const array = array_of(data);
    return array && std::memcmp(array->known_contents() + array->offset_of(data), data, bytes) == 0;
  }

 private:
  struct Free {
    void operator()(char* data) const { std::free(data); }
  };
  struct Array {
    const void* key;
    size_t bytes;
    std::unique_ptr<char, Free> data;
    std::vector<char> known{};

    std::ptrdiff_t offset_of(const void* at) const { return static_cast<const char*>(at) - data.get(); }
    char* known_contents() {
      if (known.empty()) known.assign(bytes, '\xff');
      return known.data();
    }
  };

  Array* array_of(const void* data) {
    const auto* const at = static_cast<const char*>(data);
    for (Array& array : arrays_) {
      const char* const begin = array.data.get();
      if (!std::less<>()(at, begin) && std::less<>()(at, begin + array.bytes)) return &array;
    }
    return nullptr;
  }

  void* find(const void* key) const {
    for (const Array& array : arrays_) {
      if (array.key == key) return array.data.get();
    }
    return nullptr;
  }
  void* add(const void* key, size_t bytes) {
    char* data = static_cast<char*>(std::malloc(bytes));  // aligned to 16 bytes, as DYNAMIC_SHARED promises
    if (!data) throw std::bad_alloc();
    arrays_.push_back({key, bytes, std::unique_ptr<char, Free>(data)});
    return std::memset(data, 0xff, bytes);
  }

  std::vector<Array> arrays_;
  size_t dynamic_bytes_ = 0, max_bytes_ = 0, static_bytes_ = 0;
};

}  // namespace emu
