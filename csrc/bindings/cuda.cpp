#include "cuda.h"

#include "ops/channel_norm.h"
#include "ops/row_norm.h"

#ifdef NORMEXT_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/run.h"
#endif

namespace normext {

template <class Op>
void run_on_cuda([[maybe_unused]] const Op& op, [[maybe_unused]] at::Device device) {
#ifdef NORMEXT_CUDA
  const c10::cuda::CUDAGuard guard(device);
  const int64_t bytes = cuda::workspace_bytes(op);
  // The allocator hands freed memory out again on this stream only, behind the kernels that use it.
  at::Tensor workspace;
  if (bytes > 0) workspace = at::empty({bytes}, at::TensorOptions(device).dtype(at::kByte));
  const char* error =
      cuda::run(op, bytes > 0 ? workspace.mutable_data_ptr() : nullptr, c10::cuda::getCurrentCUDAStream());
  TORCH_CHECK(!error, "normext: CUDA error: ", error, " (built for compute capability ", NORMEXT_CUDA_ARCHITECTURES,
              ")");
#else
  TORCH_CHECK_NOT_IMPLEMENTED(
      false,
      "normext was built without CUDA kernels: rebuild it beside a CUDA build of torch, where nvcc is found, with "
      "FORCE_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps .");
#endif
}

template void run_on_cuda(const RowNormForward&, at::Device);
template void run_on_cuda(const RowNormBackward&, at::Device);
template void run_on_cuda(const BatchNormForward&, at::Device);
template void run_on_cuda(const BatchNormBackward&, at::Device);
template void run_on_cuda(const BatchNormMerge&, at::Device);
template void run_on_cuda(const BatchNormUpdate&, at::Device);
template void run_on_cuda(const GroupNormForward&, at::Device);
template void run_on_cuda(const GroupNormBackward&, at::Device);

}  // namespace normext
