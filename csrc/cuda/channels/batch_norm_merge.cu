// batch_norm_merge.cu -- the moments of a batch from those of its parts.
#include "cuda/elements/launch.cuh"
#include "ops/channel_norm.h"

namespace normext::cuda {

constexpr int kMergeThreads = 128;

// Chan's formula; a part of no elements changes nothing. A thread takes a channel, and one more the counts.
static __global__ void __launch_bounds__(kMergeThreads) merge_kernel(const BatchNormMerge op) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kMergeThreads + threadIdx.x;
  const int64_t channels = op.channels, stride = 2 * channels + 1;
  if (channel > channels) return;
  double count = 0, mean = 0, m2 = 0;
  for (int64_t part = 0; part < op.count; ++part) {
    const double* const from = op.parts + part * stride;
    const double more = from[2 * channels], total = count + more;
    if (channel < channels && more > 0) {
      const double delta = from[channel] - mean;
      mean += delta * (more / total);
      m2 += from[channels + channel] + delta * delta * (count * more / total);
    }
    count = total;
  }
  if (channel == channels) {
    op.merged[2 * channels] = count;
  } else {
    op.merged[channel] = mean;
    op.merged[channels + channel] = m2;
  }
}

void perform(const BatchNormMerge& op, Run& run) {
  run.launch(merge_kernel, {.grid = grid_of(ceil_div(op.channels + 1, kMergeThreads)), .block = kMergeThreads}, op);
}

template int64_t workspace_bytes(const BatchNormMerge&);
template const char* run(const BatchNormMerge&, void*, Stream);

}  // namespace normext::cuda
