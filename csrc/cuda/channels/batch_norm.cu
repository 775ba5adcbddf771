// batch_norm.cu -- BatchNorm's kernels for every dtype.
#include "cuda/channels/batch_norm_launch.cuh"

namespace normext::cuda {

void perform(const BatchNormForward& op, Run& run) {
  with_type(op.dtype, [&]<class T>(Type<T>) { batch_norm_forward<T>(op, run); });
}
void perform(const BatchNormBackward& op, Run& run) {
  with_type(op.dtype, [&]<class T>(Type<T>) { batch_norm_backward<T>(op, run); });
}
void perform(const BatchNormUpdate& op, Run& run) {
  with_type(op.dtype, [&]<class T>(Type<T>) {
    run.launch(update_kernel<T>, {.grid = grid_of(ceil_div(op.channels, kUpdateThreads)), .block = kUpdateThreads}, op,
               static_cast<double>(op.count) / static_cast<double>(op.count - 1));
  });
}

template int64_t workspace_bytes(const BatchNormForward&);
template int64_t workspace_bytes(const BatchNormBackward&);
template int64_t workspace_bytes(const BatchNormUpdate&);
template const char* run(const BatchNormForward&, void*, Stream);
template const char* run(const BatchNormBackward&, void*, Stream);
template const char* run(const BatchNormUpdate&, void*, Stream);

}  // namespace normext::cuda
