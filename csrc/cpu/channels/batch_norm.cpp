// batch_norm.cpp -- BatchNorm on the CPU: from an op to the code for its dtypes; running statistics, and the merge of
// those of a batch in parts.
#include "cpu/channels/batch_norm_backward.h"
#include "cpu/channels/batch_norm_backward_through.h"
#include "cpu/channels/batch_norm_forward.h"
#include "cpu/kernel.h"

namespace normext::cpu::NORMEXT_ISA {

// Through an activation, if there is one. With a residual its gradient is stored first, rounded, and what is below is
// the backward of the norm alone.
template <class T>
void backward(const BatchNormBackward& op, const ChannelParameters<Scalar<T>>& parameters,
              const ChannelArrays<Scalar<T>, 2>& gradients, int threads) {
  if (op.activation.kind == Activation::Kind::none) return BatchBackward<T>(op, parameters, gradients, threads).run();
  if (!op.residual && !op.grad_residual) return BatchBackwardThrough<T>(op, parameters, gradients, threads).run();
  const Scratch<T> own(op.grad_residual ? 0 : op.shape.batch * op.shape.channels * op.shape.plane);
  BatchNormBackward rest = op;
  T* const g = op.grad_residual ? static_cast<T*>(op.grad_residual) : own;
  backward_to_sum(op, parameters, g, threads);
  rest.grad_output = g;
  if (rest.grad_input || rest.grad_weight || rest.grad_bias)
    BatchBackward<T>(rest, parameters, gradients, threads).run();
}

template <class P>
void update(const BatchNormUpdate& op) {
  const double unbiased = static_cast<double>(op.count) / static_cast<double>(op.count - 1);
  const auto blend = [&](void* running_values, const void* batch_values, double factor) {
    if (!running_values) return;
    auto* const running = static_cast<P*>(running_values);
    const auto* const batch = static_cast<const Scalar<P>*>(batch_values);
    const Doubles old_weight = broadcast(1 - op.momentum), new_weight = broadcast(op.momentum);
    for_vectors_once(0, op.channels, [&](int64_t at, int64_t count) {
      const Doubles old_value = widen(load(running + at, count)), new_value = widen(load(batch + at, count));
      Vector<P> blended;
      narrow(old_weight * old_value + new_weight * (new_value * broadcast(factor)), blended);
      store(running + at, blended, count);
    });
  };
  blend(op.running_mean, op.mean, 1);
  blend(op.running_var, op.var, unbiased);
}

// Chan's formula in float64; a part of no elements changes nothing.
void merge(const BatchNormMerge& op) {
  const int64_t all = op.channels, stride = 2 * all + 1;
  double* const count = op.merged + 2 * all;
  std::copy_n(op.parts, stride, op.merged);
  for (int64_t part = 1; part < op.count; ++part) {
    const double* const from = op.parts + part * stride;
    if (from[2 * all] == 0) continue;
    for (int64_t c = 0; c < all; ++c) {
      Moments total{*count, op.merged[c], op.merged[all + c]};
      total += {from[2 * all], from[c], from[all + c]};
      op.merged[c] = total.mean;
      op.merged[all + c] = total.m2;
    }
    *count += from[2 * all];
  }
}

template <>
void run(const BatchNormForward& op, int threads) {
  with_types(op.dtype, op.param_dtype, [&]<class T, class P>(Type<T>, Type<P> p) {
    const int64_t channels = op.shape.channels;
    const ChannelParameters<Scalar<T>> parameters(p, op.weight, op.bias, channels);
    const ChannelParameters<Scalar<T>> running(p, op.running_mean, op.running_var, op.running_mean ? channels : 0);
    BatchForward<T>(op, parameters, running, threads).run();
  });
}
template <>
void run(const BatchNormBackward& op, int threads) {
  with_types(op.dtype, op.param_dtype, [&]<class T, class P>(Type<T>, Type<P> p) {
    const int64_t channels = op.shape.channels;
    const ChannelParameters<Scalar<T>> parameters(p, op.weight, op.bias, channels);
    const ChannelArrays<Scalar<T>, 2> gradients(channels);
    backward<T>(op, parameters, gradients, threads);
    store_array(gradients[0], channels, static_cast<P*>(op.grad_weight));
    store_array(gradients[1], channels, static_cast<P*>(op.grad_bias));
  });
}
template <>
void run(const BatchNormMerge& op, int) {
  merge(op);
}
template <>
void run(const BatchNormUpdate& op, int) {
  with_types(op.dtype, op.dtype, [&]<class T, class P>(Type<T>, Type<P>) { update<P>(op); });
}

}  // namespace normext::cpu::NORMEXT_ISA

template void normext::cpu::run_on<normext::cpu::kIsa>(const BatchNormForward&, int);
template void normext::cpu::run_on<normext::cpu::kIsa>(const BatchNormBackward&, int);
template void normext::cpu::run_on<normext::cpu::kIsa>(const BatchNormMerge&, int);
template void normext::cpu::run_on<normext::cpu::kIsa>(const BatchNormUpdate&, int);
