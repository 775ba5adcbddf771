// row_norm_backward.cu -- LayerNorm's and RMSNorm's kernels backward, for every dtype.
#include "cuda/rows/row_norm_backward.cuh"

namespace normext::cuda {

void perform(const RowNormBackward& op, Run& run) {
  with_type(op.dtype, [&]<class T>(Type<T>) {
    with_sum_type<T>(op.sum_dtype, [&]<class S>(Type<S>) { row_norm_backward<T, S>(op, run); });
  });
}

template int64_t workspace_bytes(const RowNormBackward&);
template const char* run(const RowNormBackward&, void*, Stream);

}  // namespace normext::cuda
