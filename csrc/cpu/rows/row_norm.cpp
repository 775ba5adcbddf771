// row_norm.cpp -- LayerNorm and RMSNorm on the CPU: from an op to the code for its dtypes and statistics.
#include "cpu/elements/dtypes.h"
#include "cpu/kernel.h"
#include "cpu/rows/row_norm_backward.h"
#include "cpu/rows/row_norm_forward.h"

namespace normext::cpu::NORMEXT_ISA {

// Whether parameters of half types are widened once, rather than for every row: for rows enough to use them, if twice
// as many bytes leave a row its place in the first-level cache.
inline bool widen_once(int64_t rows, int64_t columns) {
  return rows >= 16 && 2 * columns * static_cast<int64_t>(sizeof(float)) <= kFirstLevel / 2;
}

template <class P, class Op>
bool should_widen(const Op& op) {
  return op.weight_offset != 0 || (sizeof(P) == 2 && widen_once(op.rows, op.columns));
}

// Whether there are kernels for X and P. To the others parameters are widened.
template <class X, class P>
constexpr bool kAreKernels = std::is_same_v<P, X> || std::is_same_v<P, Scalar<X>>;

// X is sum_dtype. Lines of parameters are widened by the threads that use them.
template <class X, class P>
void forward(const RowNormForward& op, int threads) {
  using S = Scalar<X>;
  if constexpr (!std::is_same_v<P, S>)
    if (has_lines(op)) return forward<X, S>(op, threads);
  if (!has_lines(op) && (!kAreKernels<X, P> || should_widen<P>(op))) {
    const Widened<S> widened(op.param_dtype, op.columns, 2);
    RowNormForward wide = op;
    wide.weight = widened.load(0, op.weight, 0, op.weight_offset);
    wide.bias = widened.load(1, op.bias);
    wide.weight_offset = 0;
    return forward<X, S>(wide, threads);
  }
  if constexpr (kAreKernels<X, P>)
    op.statistics == RowStatistics::centered ? ForwardWork<X, P, Centered<X>>(op, threads).run(threads)
                                             : ForwardWork<X, P, Uncentered<X>>(op, threads).run(threads);
}

// input_weight is the weight in the input's dtype, if it is to be had.
template <class X, class P>
void backward(const RowNormBackward& op, const X* input_weight, int threads) {
  using S = Scalar<X>;
  if constexpr (!std::is_same_v<P, S>)
    if (has_lines(op)) return backward<X, S>(op, nullptr, threads);
  if constexpr (std::is_same_v<X, P>) {
    if (op.weight_offset == 0 && !has_lines(op)) input_weight = static_cast<const X*>(op.weight);
  }
  if (!has_lines(op) && (!kAreKernels<X, P> || should_widen<P>(op))) {
    const Widened<S> widened(op.param_dtype, op.columns, 3);
    RowNormBackward wide = op;
    wide.weight = widened.load(0, op.weight, 0, op.weight_offset);
    wide.grad_weight = op.grad_weight ? widened.array(1) : nullptr;
    wide.grad_bias = op.grad_bias ? widened.array(2) : nullptr;
    wide.weight_offset = 0;
    backward<X, S>(wide, input_weight, threads);
    widened.store_line(1, op.grad_weight);
    widened.store_line(2, op.grad_bias);
    return;
  }
  if constexpr (kAreKernels<X, P>)
    op.statistics == RowStatistics::centered ? BackwardWork<X, P, Centered<X>>(op, input_weight).run(threads)
                                             : BackwardWork<X, P, Uncentered<X>>(op, input_weight).run(threads);
}

// Calls f(Type<sum_dtype>{}, Type<param_dtype>{}).
template <class Op, class F>
void with_op_types(const Op& op, const F& f) {
  with_types(op.dtype, op.param_dtype, [&]<class T, class P>(Type<T> type, Type<P> parameters) {
    if (op.sum_dtype == op.dtype) return f(type, parameters);
    if constexpr (sizeof(T) == 2) f(Type<float>{}, parameters);
  });
}

template <>
void run(const RowNormForward& op, int threads) {
  threads = threads_for(op.rows * op.columns, threads);
  with_op_types(op, [&]<class X, class P>(Type<X>, Type<P>) { forward<X, P>(op, threads); });
}

template <>
void run(const RowNormBackward& op, int threads) {
  threads = threads_for(op.rows * op.columns, threads);
  with_op_types(op, [&]<class X, class P>(Type<X>, Type<P>) { backward<X, P>(op, nullptr, threads); });
}

}  // namespace normext::cpu::NORMEXT_ISA

template void normext::cpu::run_on<normext::cpu::kIsa>(const RowNormForward&, int);
template void normext::cpu::run_on<normext::cpu::kIsa>(const RowNormBackward&, int);
