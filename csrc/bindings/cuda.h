// cuda.h -- an op of csrc/ops on a GPU: device, stream and scratch memory, as torch has them.
#pragma once
#include <ATen/ATen.h>

namespace normext {

// Launches the op on the device's current stream, and waits for nothing: a CUDA graph captures it. In a build without
// CUDA, an error that says so.
template <class Op>
void run_on_cuda(const Op& op, at::Device device);

}  // namespace normext
