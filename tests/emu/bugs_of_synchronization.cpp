// bugs_of_synchronization.cpp -- planted bugs inside a block: barriers, warp collectives, races.
//
// A line that an error must name ends in a comment with the bug's name.
#include "planted_bugs.h"

namespace normext::test {
namespace {

float block_sum(size_t) { return input_sum(0, kThreads); }
float sum_in_warp(size_t i) { return input_sum(i / 32 * 32, 32); }
float neighbour(size_t i) { return input(i ^ 1); }
float mirrored(size_t i) { return input(i ^ 127); }
float mirrored_in_warp(size_t i) { return input(i ^ 31); }
float thrice_block_sum(size_t) { return 3 * input_sum(0, kThreads); }

// One warp reads what another has not written.
__global__ void missing_barrier(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, partial, kWarps);
  const float sum = warp_sum(x[threadIdx.x]);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  if (fixed) __syncthreads();
  y[threadIdx.x] = sum_of(partial, kWarps);
}

// One lane reads what another lane of its warp has not written.
__global__ void missing_syncwarp(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  values[threadIdx.x] = x[threadIdx.x];
  if (fixed) __syncwarp();
  y[threadIdx.x] = values[threadIdx.x ^ 31];
}

// A fast warp writes the second sums where a slow one still reads the first.
__global__ void buffer_reused(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, partial, kWarps);
  const float sum = warp_sum(x[threadIdx.x]), twice = warp_sum(2 * x[threadIdx.x]);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  y[threadIdx.x] = sum_of(partial, kWarps);
  if (fixed) __syncthreads();
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = twice;
  __syncthreads();
  y[threadIdx.x] += sum_of(partial, kWarps);
}

// With two buffers by turns, one barrier a round is enough. With one buffer it is not.
__global__ void forgotten_parity(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, partial, 2 * kWarps);
  const float sum = warp_sum(x[threadIdx.x]);
  float total = 0;
  for (int round = 0; round < 3; ++round) {
    float* const buffer = partial + (fixed ? round % 2 * kWarps : 0);
    if (threadIdx.x % 32 == 0) buffer[threadIdx.x / 32] = sum * static_cast<float>(round);
    __syncthreads();
    total += sum_of(buffer, kWarps);
  }
  y[threadIdx.x] = total;
}

// Threads that have nothing to load leave; the others shuffle from them.
constexpr unsigned kLoading = 40;
__global__ void early_exit(const float* x, float* y, bool fixed) {
  y[threadIdx.x] = 0;
  if (!fixed && threadIdx.x >= kLoading) return;
  float sum = threadIdx.x < kLoading ? x[threadIdx.x] : 0;
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);  // early_exit
  }
  y[threadIdx.x] = sum;
}

float sum_of_loading(size_t i) {
  if (i < 32) return input_sum(0, 32);
  return i < 64 ? input_sum(32, kLoading - 32) : 0;
}

// Rows of eight lanes go round as often as each wants to, with shuffles of the whole warp.
__global__ void rows_apart(const float* x, float* y, bool fixed) {
  for (unsigned round = 0;; ++round) {
    float sum = x[threadIdx.x];
    for (int distance = 4; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, distance);  // rows_apart
    }
    y[threadIdx.x] = sum;
    const bool again = round < threadIdx.x / 8 % 4;
    if (!(fixed ? __any_sync(0xffffffffu, again) : again)) return;
  }
}

float sum_of_row(size_t i) { return input_sum(i / 8 * 8, 8); }

__global__ void exit_before_barrier(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  values[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = 0;
  if (!fixed && threadIdx.x >= kLoading) return;
  __syncthreads();  // exit_before_barrier
  if (threadIdx.x < kLoading) y[threadIdx.x] = values[threadIdx.x ^ 127];
}

float mirrored_if_loading(size_t i) { return i < kLoading ? mirrored(i) : 0; }

__global__ void divergent_barrier(const float* x, float* y, bool fixed) {
  SHARED_ARRAY(float, values, kThreads);
  values[threadIdx.x] = x[threadIdx.x];
  if (fixed || threadIdx.x < kThreads / 2) {
    __syncthreads();  // divergent_barrier
  } else {
    __syncthreads();  // divergent_barrier
  }
  y[threadIdx.x] = values[threadIdx.x ^ 127];
}

__global__ void barrier_against_shuffle(const float* x, float* y, bool fixed) {
  float sum = x[threadIdx.x];
  if (fixed || threadIdx.x % 2 == 0) {
    for (int distance = 16; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, distance);  // barrier_against_shuffle
    }
  } else {
    __syncthreads();  // barrier_against_shuffle
  }
  y[threadIdx.x] = sum;
}

__global__ void different_collectives(const float* x, float* y, bool fixed) {
  const float value = x[threadIdx.x];
  if (fixed || threadIdx.x % 2 == 0) {
    y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, value, 1);  // different_collectives
  } else {
    y[threadIdx.x] = __shfl_up_sync(0xffffffffu, value, 1);  // different_collectives
  }
}

// The mask names the lower half of a warp, and the upper half shuffles, too.
__global__ void wrong_mask(const float* x, float* y, bool fixed) {
  const unsigned mask = fixed ? 0xffffffffu : 0xffffu;
  y[threadIdx.x] = __shfl_xor_sync(mask, x[threadIdx.x], 1);  // wrong_mask
}

// Only the half of a warp that the mask names shuffles, from the other half.
__global__ void shuffle_out_of_mask(const float* x, float* y, bool fixed) {
  y[threadIdx.x] = x[threadIdx.x ^ 1];
  if (threadIdx.x % 32 >= 16) return;
  y[threadIdx.x] = __shfl_xor_sync(0xffffu, x[threadIdx.x], fixed ? 1 : 16);  // shuffle_out_of_mask
}

// A block reads what another block of the same launch writes.
__global__ void dependent_blocks(const float* x, float* y, bool fixed) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  y[i] = x[i];
  if (blockIdx.x > 0) y[i] += fixed ? x[i - kThreads] : y[threadIdx.x];
}

float sum_with_first_block(size_t i) { return input(i) + (i < kThreads ? 0 : input(i - kThreads)); }

}  // namespace

std::vector<Bug> bugs_of_synchronization() {
  return {
      {"missing_barrier", missing_barrier, block_sum, blocks(1)},
      {"missing_syncwarp", missing_syncwarp, mirrored_in_warp, blocks(1)},
      {"buffer_reused", buffer_reused, thrice_block_sum, blocks(1)},
      {"forgotten_parity", forgotten_parity, thrice_block_sum, blocks(1)},
      {"early_exit", early_exit, sum_of_loading, blocks(1)},
      {"rows_apart", rows_apart, sum_of_row, blocks(1)},
      {"exit_before_barrier", exit_before_barrier, mirrored_if_loading, blocks(1)},
      {"divergent_barrier", divergent_barrier, mirrored, blocks(1)},
      {"barrier_against_shuffle", barrier_against_shuffle, sum_in_warp, blocks(1)},
      {"different_collectives", different_collectives, neighbour, blocks(1)},
      {"wrong_mask", wrong_mask, neighbour, blocks(1)},
      {"shuffle_out_of_mask", shuffle_out_of_mask, neighbour, blocks(1)},
      {"dependent_blocks", dependent_blocks, sum_with_first_block, blocks(2)},
  };
}

}  // namespace normext::test
