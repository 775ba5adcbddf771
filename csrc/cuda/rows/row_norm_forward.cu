// row_norm_forward.cu -- LayerNorm's and RMSNorm's kernels forward, for every dtype.
#include "cuda/rows/row_norm_forward.cuh"

namespace normext::cuda {

void perform(const RowNormForward& op, Run& run) {
  with_type(op.dtype, [&]<class T>(Type<T>) {
    if (!op.residual) return row_norm_forward<T>(op, run);
    with_sum_type<T>(op.sum_dtype, [&]<class S>(Type<S>) { add_row_norm_forward<T, S>(op, run); });
  });
}

template int64_t workspace_bytes(const RowNormForward&);
template const char* run(const RowNormForward&, void*, Stream);

}  // namespace normext::cuda
