// ring_forward.cu -- the kernels of ring_forward.cuh: a source of their own, that they and the others may be compiled
// at once.
#include "cuda/rows/ring_forward.cuh"

namespace normext::cuda {

template <class T>
bool ring_forward(const RowNormForward& op, Run& run) {
  bool launched = false;
  with_statistics(op.statistics,
                  [&]<class Statistics>(Type<Statistics>) { launched = launch_ring_forward<T, Statistics>(op, run); });
  return launched;
}

template bool ring_forward<float>(const RowNormForward&, Run&);
template bool ring_forward<__nv_bfloat16>(const RowNormForward&, Run&);
template bool ring_forward<__half>(const RowNormForward&, Run&);

}  // namespace normext::cuda
