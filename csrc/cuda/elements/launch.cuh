// launch.cuh -- running an op: its scratch memory, its kernels, and the step from dtypes to types.
#pragma once
#include <algorithm>

#include "cuda/elements/parameters.cuh"
#include "cuda/elements/platform.cuh"
#include "cuda/elements/vec.cuh"
#include "cuda/run.h"
#include "ops/types.h"

namespace normext::cuda {

// Takes scratch memory and launches kernels, or, without scratch memory to take from, only counts how much it would
// take: so the two cannot differ.
class Run {
 public:
  explicit Run(const Device& on) : device(on) {}
  Run(const Device& on, void* workspace, cudaStream_t stream)
      : device(on), launches_(true), workspace_(static_cast<char*>(workspace)), stream_(stream) {}

  const Device device;

  template <class T>
  T* take(int64_t count) {
    T* const taken = reinterpret_cast<T*>(workspace_ + used_);
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
    return launches_ ? taken : nullptr;
  }
  int64_t used() const { return used_; }

  // Once a launch has failed, those after it are left out.
  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), Launch how, const Arguments&... arguments) {
    if (!launches_ || status_ != cudaSuccess) return;
    how.stream = stream_;
    how.follows = follows_;
    follows_ = true;
    status_ = cuda::launch(kernel, how, arguments...);
  }
  cudaError_t status() const { return status_; }

 private:
  bool launches_ = false, follows_ = false;
  char* workspace_ = nullptr;
  int64_t used_ = 0;
  cudaStream_t stream_ = nullptr;
  cudaError_t status_ = cudaSuccess;
};

template <class F>
void with_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float64:
      return f(Type<double>{});
    case DType::float32:
      return f(Type<float>{});
    case DType::bfloat16:
      return f(Type<__nv_bfloat16>{});
    case DType::float16:
      return f(Type<__half>{});
  }
}

constexpr int64_t kExchangeBytes = 2048;  // room for a block's static shared memory, and what the system takes

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline unsigned grid_of(int64_t blocks) { return static_cast<unsigned>(blocks); }

// run.h, for an op that there is a perform(op, Run&) for. Instantiated by the op's source.
template <class Op>
int64_t workspace_bytes(const Op& op) {
  Run run(device());
  perform(op, run);
  return run.used();
}
template <class Op>
const char* run(const Op& op, void* workspace, Stream stream) {
  Run run(device(), workspace, stream);
  perform(op, run);
  return run.status() == cudaSuccess ? nullptr : cudaGetErrorString(run.status());
}

}  // namespace normext::cuda
