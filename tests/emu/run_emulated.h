// run_emulated.h -- an op of csrc/ops through the emulated CUDA kernels.
#pragma once
#include <memory>
#include <stdexcept>

#include "cuda/run.h"

namespace normext::test {

// The scratch memory is as large as asked for and not a byte more, so that AddressSanitizer sees every overrun, and
// full of NaN.
template <class Op>
void run_emulated(const Op& op) {
  const int64_t bytes = cuda::workspace_bytes(op);
  const auto workspace = std::make_unique<char[]>(bytes);
  std::fill_n(workspace.get(), bytes, '\xff');
  if (const char* error = cuda::run(op, workspace.get(), nullptr)) throw std::runtime_error(error);
}

}  // namespace normext::test
