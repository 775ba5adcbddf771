// row_norm.cpp -- LayerNorm on the CPU: from an op to the code for its dtypes.
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

// Float32 in the place of parameters of half types.
class Widened {
 public:
  Widened(int64_t columns, int arrays) : columns_(columns), numbers_(columns * arrays) {}

  float* array(int i) const { return numbers_ + i * columns_; }
  template <class P>
  const void* load(const void* parameters, int i) const {
    if (!parameters) return nullptr;
    load_array(static_cast<const P*>(parameters), columns_, 0, array(i));
    return array(i);
  }
  template <class P>
  void store(int i, void* gradient) const {
    store_array(array(i), columns_, static_cast<P*>(gradient));
  }

 private:
  int64_t columns_;
  Scratch<float> numbers_;
};

template <class T, class P>
void forward(const RowNormForward& op, int threads) {
  if constexpr (sizeof(P) == 2) {
    if (widen_once(op.rows, op.columns)) {
      const Widened widened(op.columns, 2);
      RowNormForward wide = op;
      wide.weight = widened.load<P>(op.weight, 0);
      wide.bias = widened.load<P>(op.bias, 1);
      return forward<T, float>(wide, threads);
    }
  }
  LayerNormRows<T, P>(op).run(threads);
}

// input_weight is the weight in the input's dtype, if it is to be had.
template <class T, class P>
void backward(const RowNormBackward& op, const T* input_weight, int threads) {
  if constexpr (std::is_same_v<T, P>) input_weight = static_cast<const T*>(op.weight);
  if constexpr (sizeof(P) == 2) {
    if (widen_once(op.rows, op.columns)) {
      const Widened widened(op.columns, 3);
      RowNormBackward wide = op;
      wide.weight = widened.load<P>(op.weight, 0);
      wide.grad_weight = op.grad_weight ? widened.array(1) : nullptr;
      wide.grad_bias = op.grad_bias ? widened.array(2) : nullptr;
      backward<T, float>(wide, input_weight, threads);
      widened.store<P>(1, op.grad_weight);
      widened.store<P>(2, op.grad_bias);
      return;
    }
  }
  const bool streams = should_stream(3 * op.rows * op.columns * static_cast<int64_t>(sizeof(T)), threads, false);
  const LayerNormGradients<T, P> gradients(op, input_weight);
  streams ? gradients.template run<true>(threads) : gradients.template run<false>(threads);
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
