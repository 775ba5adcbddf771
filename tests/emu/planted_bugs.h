// planted_bugs.h -- what the planted bugs have in common: small kernels, each with its bug or without.
#pragma once
#include <cstddef>
#include <vector>

#include "cuda/elements/platform.cuh"

namespace normext::test {

// kernel(x, y, fixed) runs on x[i] = input(i), once with its bug and once without, and must set y[i] to expected(i).
// The arrays have an element for each thread of the grid.
struct Bug {
  const char* name;
  void (*kernel)(const float* x, float* y, bool fixed);
  float (*expected)(size_t i);
  cuda::Launch how;
  cuda::Launch buggy = how;  // for a bug in the launch itself
};
std::vector<Bug> bugs_of_synchronization();
std::vector<Bug> bugs_of_memory();
std::vector<Bug> bugs_of_clusters();
std::vector<Bug> bugs_of_launches();
std::vector<Bug> bugs_of_transfers();

constexpr unsigned kThreads = 128, kWarps = kThreads / 32;

inline cuda::Launch blocks(unsigned count, unsigned cluster = 1, size_t shared_bytes = 0) {
  return {.grid = count, .block = kThreads, .stream = nullptr, .shared_bytes = shared_bytes, .cluster = cluster};
}

// Small integers: sums of them need no rounding.
inline float input(size_t i) { return static_cast<float>(i % 7 + 1); }
inline float input_sum(size_t begin, size_t count) {
  float sum = 0;
  for (size_t i = begin; i < begin + count; ++i) sum += input(i);
  return sum;
}

__device__ inline float warp_sum(float value) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

__device__ inline float sum_of(const float* values, unsigned count) {
  float sum = 0;
  for (unsigned i = 0; i < count; ++i) sum += values[i];
  return sum;
}

}  // namespace normext::test
