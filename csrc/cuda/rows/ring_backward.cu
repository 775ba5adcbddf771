// ring_backward.cu -- the kernels of ring_backward.cuh: a source of their own, that they and the others may be compiled
// at once.
#include "cuda/rows/ring_backward.cuh"

namespace normext::cuda {

// Lines of scale and shift, one for each sample, stay where they were; so does RMSNorm with a shift.
template <class T>
bool ring_backward(const RowNormBackward& op, Run& run) {
  if (lines_of(op) > 1) return false;
  if (op.statistics == RowStatistics::centered) return launch_ring_backward<T, Centered>(op, run);
  return !op.grad_bias && launch_ring_backward<T, Uncentered>(op, run);
}

template bool ring_backward<float>(const RowNormBackward&, Run&);
template bool ring_backward<__nv_bfloat16>(const RowNormBackward&, Run&);
template bool ring_backward<__half>(const RowNormBackward&, Run&);

}  // namespace normext::cuda
