// batch_norm_backward_through.h -- the backward of BatchNorm on the CPU through an activation that follows it, or its
// sum with a residual. Phases are not inlined: the loops over blocks have several calls of each.
#pragma once
#include "cpu/channels/arrays.h"
#include "cpu/channels/channels.h"
#include "cpu/channels/maps.h"
#include "ops/channel_norm.h"

namespace normext::cpu::NORMEXT_ISA {

// Without a residual: sums and maps go through the activation's derivative.
template <class T>
class BatchBackwardThrough {
  using S = Scalar<T>;

 public:
  BatchBackwardThrough(const BatchNormBackward& op, const ChannelParameters<S>& parameters,
                       const ChannelArrays<S, 2>& gradients, int threads)
      : op_(op),
        parameters_(parameters),
        gradients_(gradients),
        activate_(op.activation),
        in_{static_cast<const T*>(op.grad_output), static_cast<const T*>(op.input)},
        mean_(static_cast<const S*>(op.mean)),
        rstd_(static_cast<const S*>(op.rstd)),
        sums_needed_(op.grad_weight || op.grad_bias || op.training),
        all_(op.shape.channels),
        channels_(op.shape, threads, 2, sizeof(T), sums_needed_),
        sums_(sums_needed_ ? channels_.slices() * all_ : 0),
        coefficients_(all_) {}

  void run() const {
    channels_.run([&](int64_t block, int64_t slice) { reduce(block, slice); },
                  [&](int64_t begin, int64_t end) { finish(begin, end); },
                  [&](int64_t block, int64_t slice) { map(block, slice); },
                  [&](int64_t block, int64_t slice) {
                    map(block, slice);
                    reduce(block + 1, slice);
                  });
  }

 private:
  NORMEXT_NOINLINE void reduce(int64_t block, int64_t slice) const {
    channels_.reduce(GradientSumsThrough<T>(activate_), block, slice, in_,
                     {mean_, rstd_, parameters_.weight, parameters_.bias}, sums_.template first<3>(slice * all_).at);
  }

  // Gradients of the parameters, and the coefficients of the map.
  NORMEXT_NOINLINE void finish(int64_t begin, int64_t end) const {
    for (int64_t c = begin; c < end; ++c) coefficients_[2][c] = parameters_.weight[c] * rstd_[c];
    if (!sums_needed_) return;
    const double count = static_cast<double>(op_.shape.batch * op_.shape.plane);
    for (int64_t c = begin; c < end; ++c) {
      Gradients total;
      for (int64_t at = c; at < channels_.slices() * all_; at += all_)
        total += {sums_[0][at], sums_[1][at], sums_[2][at]};
      if (!op_.training) total.xhat = 0;  // the mean is a given number: nothing to correct
      const double corrected = total.corrected(count), w = parameters_.weight[c];
      gradients_[0][c] = static_cast<S>(corrected);
      gradients_[1][c] = static_cast<S>(total.g);
      coefficients_[0][c] = static_cast<S>(-corrected * w / count);
      coefficients_[1][c] = static_cast<S>((total.offset(count) * corrected - total.g) * w / count);
    }
  }

  NORMEXT_NOINLINE void map(int64_t block, int64_t slice) const {
    T* const dx = static_cast<T*>(op_.grad_input);
    if (!dx) return;
    if (op_.training)
      channels_.map(WeightedGradient<T, Activate<T>>{activate_}, block, slice, in_, dx,
                    {mean_, rstd_, parameters_.weight, parameters_.bias, coefficients_[0], coefficients_[1]});
    else
      channels_.map(GradientThrough<T, false>{activate_}, block, slice, in_, dx,
                    {mean_, rstd_, parameters_.weight, parameters_.bias, coefficients_[2]});
  }

  const BatchNormBackward& op_;
  const ChannelParameters<S>& parameters_;
  const ChannelArrays<S, 2>& gradients_;
  const Activate<T> activate_;
  const T* const in_[2];  // dy, x
  const S *const mean_, *const rstd_;
  const bool sums_needed_;
  const int64_t all_;  // channels
  const Channels channels_;
  const ChannelArrays<double, 3> sums_;     // of GradientSumsThrough
  const ChannelArrays<S, 3> coefficients_;  // slope and level of WeightedGradient, the factor of GradientThrough
};

// grad_residual, the gradient of the sum that an activation follows.
template <class T>
void backward_to_sum(const BatchNormBackward& op, const ChannelParameters<Scalar<T>>& parameters, T* g, int threads) {
  using S = Scalar<T>;
  const T *const dy = static_cast<const T*>(op.grad_output), *const x = static_cast<const T*>(op.input);
  const T* const residual = static_cast<const T*>(op.residual);
  const Activate<T> activate(op.activation);
  const Channels channels(op.shape, threads, 3, sizeof(T), false);
  const ChannelArrays<S, 1> ones(op.shape.channels);
  std::fill_n(ones[0], op.shape.channels, 1);
  const S* const k[5] = {static_cast<const S*>(op.mean), static_cast<const S*>(op.rstd), parameters.weight,
                         parameters.bias, ones[0]};
  const auto nothing = [](auto...) {};
  const auto map = [&](int64_t block, int64_t slice) {
    if (residual)
      channels.map(GradientThrough<T, true>{activate}, block, slice, {dy, x, residual}, g, k);
    else
      channels.map(GradientThrough<T, false>{activate}, block, slice, {dy, x}, g, k);
  };
  channels.run(nothing, nothing, map, nothing);
}

}  // namespace normext::cpu::NORMEXT_ISA
