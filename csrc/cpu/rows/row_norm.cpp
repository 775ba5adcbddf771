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

// Numbers of the type that is computed in, in the place of parameters.
template <class S>
class Widened {
 public:
  Widened(int64_t columns, int arrays) : columns_(columns), numbers_(columns * arrays) {}

  S* array(int i) const { return numbers_ + i * columns_; }
  template <class P>
  const void* load(const void* parameters, int i, double offset = 0) const {
    if (!parameters) return nullptr;
    load_array(static_cast<const P*>(parameters), columns_, S{0}, array(i));
    if (offset != 0)
      for (int64_t c = 0; c < columns_; ++c) array(i)[c] += static_cast<S>(offset);
    return array(i);
  }
  template <class P>
  void store(int i, void* gradient) const {
    store_array(array(i), columns_, static_cast<P*>(gradient));
  }

 private:
  int64_t columns_;
  Scratch<S> numbers_;
};

template <class P, class Op>
bool should_widen(const Op& op) {
  return op.weight_offset != 0 || (sizeof(P) == 2 && widen_once(op.rows, op.columns));
}

template <class T, class P>
void forward(const RowNormForward& op, int threads) {
  if (should_widen<P>(op)) {
    const Widened<Scalar<T>> widened(op.columns, 2);
    RowNormForward wide = op;
    wide.weight = widened.template load<P>(op.weight, 0, op.weight_offset);
    wide.bias = widened.template load<P>(op.bias, 1);
    wide.weight_offset = 0;
    return forward<T, Scalar<T>>(wide, threads);
  }
  op.statistics == RowStatistics::centered ? NormalizedRows<T, P, Centered<T>>(op).run(threads)
                                           : NormalizedRows<T, P, Uncentered<T>>(op).run(threads);
}

template <class T, class P, class Statistics>
void backward(const RowNormBackward& op, const T* input_weight, int threads) {
  const bool streams = should_stream(3 * op.rows * op.columns * static_cast<int64_t>(sizeof(T)), threads, false);
  const RowGradients<T, P, Statistics> gradients(op, input_weight);
  streams ? gradients.template run<true>(threads) : gradients.template run<false>(threads);
}

// input_weight is the weight in the input's dtype, if it is to be had.
template <class T, class P>
void backward(const RowNormBackward& op, const T* input_weight, int threads) {
  if constexpr (std::is_same_v<T, P>) {
    if (op.weight_offset == 0) input_weight = static_cast<const T*>(op.weight);
  }
  if (should_widen<P>(op)) {
    const Widened<Scalar<T>> widened(op.columns, 3);
    RowNormBackward wide = op;
    wide.weight = widened.template load<P>(op.weight, 0, op.weight_offset);
    wide.grad_weight = op.grad_weight ? widened.array(1) : nullptr;
    wide.grad_bias = op.grad_bias ? widened.array(2) : nullptr;
    wide.weight_offset = 0;
    backward<T, Scalar<T>>(wide, input_weight, threads);
    widened.template store<P>(1, op.grad_weight);
    widened.template store<P>(2, op.grad_bias);
    return;
  }
  op.statistics == RowStatistics::centered ? backward<T, P, Centered<T>>(op, input_weight, threads)
                                           : backward<T, P, Uncentered<T>>(op, input_weight, threads);
}

template <>
void run(const RowNormForward& op, int threads) {
  threads = threads_for(op.rows * op.columns, threads);
  with_types(op.dtype, op.param_dtype, [&]<class T, class P>(Type<T>, Type<P>) { forward<T, P>(op, threads); });
}

template <>
void run(const RowNormBackward& op, int threads) {
  threads = threads_for(op.rows * op.columns, threads);
  with_types(op.dtype, op.param_dtype,
             [&]<class T, class P>(Type<T>, Type<P>) { backward<T, P>(op, nullptr, threads); });
}

}  // namespace normext::cpu::NORMEXT_ISA

template void normext::cpu::run_on<normext::cpu::kIsa>(const RowNormForward&, int);
template void normext::cpu::run_on<normext::cpu::kIsa>(const RowNormBackward&, int);
