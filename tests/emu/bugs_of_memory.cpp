// bugs_of_memory.cpp -- planted bugs for the sanitizers: wrong addresses.
#include "planted_bugs.h"

namespace normext::test {
namespace {

float mirrored(size_t i) { return input(i ^ 127); }

// This loop and the next two go one element too far.
__global__ void static_overrun(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  for (unsigned i = threadIdx.x; i < kThreads + !fixed; i += kThreads) {
    values[i] = x[threadIdx.x];  // static_overrun
  }
  __syncthreads();
  y[threadIdx.x] = values[threadIdx.x ^ 127];
}

__global__ void dynamic_overrun(const float* x, float* y, bool fixed) {
  DYNAMIC_SHARED(float, values);
  for (unsigned i = threadIdx.x; i < kThreads + !fixed; i += kThreads) {
    values[i] = x[threadIdx.x];  // dynamic_overrun
  }
  __syncthreads();
  y[threadIdx.x] = values[threadIdx.x ^ 127];
}

__global__ void global_overrun(const float*, float* y, bool fixed) {
  for (unsigned i = threadIdx.x; i < kThreads + !fixed; i += kThreads) {
    y[i] = input(i ^ 127);  // global_overrun
  }
}

// Four elements move at once, in the buggy variant from an address that is no multiple of 16.
__global__ void misaligned_vector(const float* x, float* y, bool fixed) {
  if (threadIdx.x >= kThreads / 4) return;
  const unsigned first = 4 * threadIdx.x, skew = fixed || threadIdx.x == 0 ? 0 : 1;
  const float4 four = *reinterpret_cast<const float4*>(x + first - skew);  // misaligned_vector
  *reinterpret_cast<float4*>(y + first) = four;
}

}  // namespace

std::vector<Bug> bugs_of_memory() {
  return {
      {"static_overrun", static_overrun, mirrored, blocks(1)},
      {"dynamic_overrun", dynamic_overrun, mirrored, blocks(1, 1, kThreads * sizeof(float))},
      {"global_overrun", global_overrun, mirrored, blocks(1)},
      {"misaligned_vector", misaligned_vector, input, blocks(1)},
  };
}

}  // namespace normext::test
