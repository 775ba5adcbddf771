// layer_norm.cpp -- LayerNorm on the CPU: from an op to the code for its dtypes.
#include "dtypes.h"
#include "kernel.h"
#include "layer_norm_backward.h"
#include "layer_norm_forward.h"

namespace normext::cpu::NORMEXT_ISA {

template <>
void run(const LayerNormForward& op, int threads) {
  threads = threads_for(op.rows * op.columns, threads);
  with_types(op.dtype, op.param_dtype,
             [&]<class T, class P>(Type<T>, Type<P>) { LayerNormRows<T, P>(op).run(threads); });
}

template <>
void run(const LayerNormBackward& op, int threads) {
  threads = threads_for(op.rows * op.columns, threads);
  with_types(op.dtype, op.param_dtype, [&]<class T, class P>(Type<T>, Type<P>) {
    const bool streams = should_stream(3 * op.rows * op.columns * static_cast<int64_t>(sizeof(T)));
    const LayerNormGradients<T, P> gradients(op);
    streams ? gradients.template run<true>(threads) : gradients.template run<false>(threads);
  });
}

}  // namespace normext::cpu::NORMEXT_ISA

template void normext::cpu::run_on<normext::cpu::kIsa>(const LayerNormForward&, int);
template void normext::cpu::run_on<normext::cpu::kIsa>(const LayerNormBackward&, int);
