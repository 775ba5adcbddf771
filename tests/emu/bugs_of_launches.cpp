// bugs_of_launches.cpp -- launches that no device takes.
#include "planted_bugs.h"

namespace normext::test {
namespace {

constexpr size_t kMaxShared = 227 << 10;

__global__ void copy(const float* x, float* y, bool) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i];
}

__global__ void static_shared_memory(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, most, (48 << 10) / sizeof(float));
  most[threadIdx.x] = x[threadIdx.x];
  if (!fixed) {
    SHARED_ARRAY(float, more, 1);  // static_shared_memory
    more[0] = 0;
  }
  y[threadIdx.x] = most[threadIdx.x];
}

// What is dynamic is checked at the launch, and again where a static array comes on top of it.
__global__ void shared_memory(const float* x, float* y, bool) {
  SHARED_ARRAY(float, values, 256);  // static_and_dynamic
  values[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = values[threadIdx.x];
}

}  // namespace

std::vector<Bug> bugs_of_launches() {
  cuda::Launch largest_block = blocks(1), larger_block = blocks(1);
  largest_block.block = {32, 32};
  larger_block.block = {33, 32};
  return {
      {"block_too_large", copy, input, blocks(1), larger_block},
      {"empty_grid", copy, input, blocks(1), blocks(0)},
      {"ragged_grid", copy, input, blocks(8, 4), blocks(10, 4)},
      {"cluster_too_large", copy, input, blocks(16, 8), blocks(16, 16)},
      {"dynamic_shared_memory", copy, input, blocks(1, 1, kMaxShared), blocks(1, 1, kMaxShared + 1)},
      {"static_shared_memory", static_shared_memory, input, blocks(1)},
      {"static_and_dynamic", shared_memory, input, blocks(1, 1, kMaxShared - 1024), blocks(1, 1, kMaxShared)},
  };
}

}  // namespace normext::test
