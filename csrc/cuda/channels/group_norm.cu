// group_norm.cu -- GroupNorm's kernels for every dtype.
#include "cuda/channels/group_norm_launch.cuh"

namespace normext::cuda {

void perform(const GroupNormForward& op, Run& run) {
  with_type(op.dtype, [&]<class T>(Type<T>) { group_norm_forward<T>(op, run); });
}
void perform(const GroupNormBackward& op, Run& run) {
  with_type(op.dtype, [&]<class T>(Type<T>) { group_norm_backward<T>(op, run); });
}

template int64_t workspace_bytes(const GroupNormForward&);
template int64_t workspace_bytes(const GroupNormBackward&);
template const char* run(const GroupNormForward&, void*, Stream);
template const char* run(const GroupNormBackward&, void*, Stream);

}  // namespace normext::cuda
