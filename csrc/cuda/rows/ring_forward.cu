// ring_forward.cu -- the kernels of ring_forward.cuh: a source of their own, that they and the others may be compiled
// at once.
#include "cuda/rows/ring_forward.cuh"

namespace normext::cuda {

// RMSNorm with a shift stays where it was; so does a float32 sum beside half types.
template <class T>
bool ring_forward(const RowNormForward& op, Run& run) {
  if (op.residual && op.sum_dtype != op.dtype) return false;
  if (op.statistics == RowStatistics::centered) return launch_ring_forward<T, Centered>(op, run);
  return !op.bias && launch_ring_forward<T, Uncentered>(op, run);
}

template bool ring_forward<float>(const RowNormForward&, Run&);
template bool ring_forward<__nv_bfloat16>(const RowNormForward&, Run&);
template bool ring_forward<__half>(const RowNormForward&, Run&);

}  // namespace normext::cuda
