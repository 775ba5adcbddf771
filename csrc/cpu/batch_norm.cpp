// batch_norm.cpp -- BatchNorm on the CPU: sums per channel, then one affine map per channel.
#include "ops/batch_norm.h"

#include "channels.h"
#include "dtypes.h"
#include "kernel.h"
#include "scratch.h"

namespace normext::cpu::NORMEXT_ISA {

// y = (x - high) * scale + shift. The mean is split into high + low, and low, which float32 cannot hold beside high, is
// part of the shift: the difference is exact however far the mean is from zero.
template <class T>
struct Normalize {
  static constexpr int kInputs = 1, kCoefficients = 3;
  static Vector<T> apply(const Vector<T> (&in)[1], const Vector<T> (&k)[3]) { return fma(in[0] - k[0], k[1], k[2]); }

  static void coefficients(double mean, double rstd, double weight, double bias, Scalar<T>* k) {
    const double scale = rstd * weight;
    k[0] = static_cast<Scalar<T>>(mean);
    k[1] = static_cast<Scalar<T>>(scale);
    const double low = std::isinf(mean) ? 0 : mean - k[0];
    k[2] = static_cast<Scalar<T>>(bias - low * scale);
  }
};

// dx = (dy - level + xhat * slope) * scale, with xhat = (x - mean) * rstd. (rstd joined to the slope would underflow in
// float32 for deviations of 1e30.) The scale comes first: it is all that evaluation needs.
template <class T>
struct TrainingGradient {
  static constexpr int kInputs = 2, kCoefficients = 5;  // dy, x; scale, mean, rstd, slope, level
  static Vector<T> apply(const Vector<T> (&in)[2], const Vector<T> (&k)[5]) {
    return fma((in[1] - k[1]) * k[2], k[3], in[0] - k[4]) * k[0];
  }
};

// dx = dy * scale
template <class T>
struct EvaluationGradient {
  static constexpr int kInputs = 1, kCoefficients = 1;
  static Vector<T> apply(const Vector<T> (&in)[1], const Vector<T> (&k)[1]) { return in[0] * k[0]; }
};

// Each channel's coefficients of such a map.
template <class T, int kCount>
class Coefficients {
 public:
  explicit Coefficients(int64_t channels) : of_(channels) {}
  Scalar<T>* operator[](int64_t channel) { return of_[channel].k; }

  template <int kFirst>
  void operator()(int64_t channel, Scalar<T> (&k)[kFirst]) const {
    std::copy_n(of_[channel].k, kFirst, k);
  }

 private:
  struct Array {
    Scalar<T> k[kCount];
  };
  Scratch<Array> of_;
};

// A slice of so many float64 elements is still in cache when it is summed a second time.
constexpr int64_t kCachedElements = 32768;

template <class T, class P>
void forward(const BatchNormForward& op, int threads) {
  using S = Scalar<T>;
  const T* const in[1] = {static_cast<const T*>(op.input)};
  const P *weight = static_cast<const P*>(op.weight), *bias = static_cast<const P*>(op.bias);
  const P *running_mean = static_cast<const P*>(op.running_mean), *running_var = static_cast<const P*>(op.running_var);
  S *mean = static_cast<S*>(op.mean), *rstd = static_cast<S*>(op.rstd), *var = static_cast<S*>(op.var);

  const Channels channels(op.shape, threads, kTwoPasses<T> ? kCachedElements : 0);
  const int64_t channel_count = op.shape.channels;
  Coefficients<T, 3> coefficients(channel_count);
  Scratch<Moments> partials(running_mean ? 0 : channels.slices() * channel_count);

  const auto reduce = [&](int64_t block, int64_t slice) {
    if (running_mean) return;
    const auto pass = [&](const auto& shift_of) {
      channels.reduce<MomentSums<T>, T>(
          block, slice, in, [&](int64_t channel, S(&shift)[1]) { shift[0] = shift_of(channel); },
          [&](int64_t channel, const double (&totals)[2]) {
            partials[slice * channel_count + channel] =
                moments_from_sums(channels.count(slice), shift_of(channel), totals[0], totals[1]);
          });
    };
    pass([&](int64_t channel) { return load_one(in[0] + channels.first_element(channel)); });
    if constexpr (kTwoPasses<T>) pass([&](int64_t channel) { return partials[slice * channel_count + channel].mean; });
  };
  const auto finish = [&](int64_t channel) {
    double m, v;
    if (running_mean) {
      m = load_one(running_mean + channel);
      v = load_one(running_var + channel);
    } else {
      Moments moments;
      for (int64_t slice = 0; slice < channels.slices(); ++slice) moments += partials[slice * channel_count + channel];
      m = moments.mean;
      v = moments.variance();
      var[channel] = static_cast<S>(v);
    }
    const double r = reciprocal_std(v, op.eps);
    mean[channel] = static_cast<S>(m);
    rstd[channel] = static_cast<S>(r);
    Normalize<T>::coefficients(m, r, element_or(weight, channel, 1), element_or(bias, channel, 0),
                               coefficients[channel]);
  };
  const auto map = [&](int64_t block, int64_t slice) {
    channels.map<Normalize<T>, T>(block, slice, in, static_cast<T*>(op.output), coefficients);
  };
  channels.run(reduce, finish, map);
}

template <class T, class P>
void backward(const BatchNormBackward& op, int threads) {
  using S = Scalar<T>;
  const T *dy = static_cast<const T*>(op.grad_output), *x = static_cast<const T*>(op.input);
  const S *mean = static_cast<const S*>(op.mean), *rstd = static_cast<const S*>(op.rstd);
  const P* weight = static_cast<const P*>(op.weight);
  P *grad_weight = static_cast<P*>(op.grad_weight), *grad_bias = static_cast<P*>(op.grad_bias);
  T* dx = static_cast<T*>(op.grad_input);

  const Channels channels(op.shape, threads);
  const int64_t channel_count = op.shape.channels;
  const double count = static_cast<double>(op.shape.batch * op.shape.plane);
  const bool sums_needed = grad_weight || grad_bias || op.training;
  Scratch<Gradients> partials(sums_needed ? channels.slices() * channel_count : 0);
  Coefficients<T, 5> coefficients(channel_count);

  const auto reduce = [&](int64_t block, int64_t slice) {
    if (!sums_needed) return;
    const T* const in[2] = {dy, x};
    channels.reduce<GradientSums<T>, T>(
        block, slice, in,
        [&](int64_t channel, S(&k)[2]) {
          k[0] = mean[channel];
          k[1] = rstd[channel];
        },
        [&](int64_t channel, const double (&totals)[3]) {
          partials[slice * channel_count + channel] = {totals[0], totals[1], totals[2]};
        });
  };
  const auto finish = [&](int64_t channel) {
    const double r = rstd[channel], scale = r * element_or(weight, channel, 1);
    S* k = coefficients[channel];
    k[0] = static_cast<S>(scale);
    if (!sums_needed) return;
    Gradients sums;
    for (int64_t slice = 0; slice < channels.slices(); ++slice) sums += partials[slice * channel_count + channel];
    // In evaluation the mean is a given number, not the data's: nothing to correct.
    const double offset = op.training ? sums.offset(count) : 0;
    const double g_xhat = op.training ? sums.corrected(count) : sums.g_xhat;
    if (grad_weight) store_one(grad_weight + channel, g_xhat);
    if (grad_bias) store_one(grad_bias + channel, sums.g);
    k[1] = mean[channel];
    k[2] = rstd[channel];
    k[3] = static_cast<S>(-g_xhat / count);
    k[4] = static_cast<S>((sums.g - offset * g_xhat) / count);
  };
  const auto map = [&](int64_t block, int64_t slice) {
    if (!dx) return;
    if (op.training) {
      const T* const in[2] = {dy, x};
      channels.map<TrainingGradient<T>, T>(block, slice, in, dx, coefficients);
    } else {
      const T* const in[1] = {dy};
      channels.map<EvaluationGradient<T>, T>(block, slice, in, dx, coefficients);
    }
  };
  channels.run(reduce, finish, map);
}

template <class P>
void update(const BatchNormUpdate& op) {
  const auto *mean = static_cast<const Scalar<P>*>(op.mean), *var = static_cast<const Scalar<P>*>(op.var);
  P *running_mean = static_cast<P*>(op.running_mean), *running_var = static_cast<P*>(op.running_var);
  const double unbiased = static_cast<double>(op.count) / static_cast<double>(op.count - 1);
  const auto blend = [&](P* running, double batch) {
    store_one(running, (1 - op.momentum) * load_one(running) + op.momentum * batch);
  };
  for (int64_t channel = 0; channel < op.channels; ++channel) {
    if (running_mean) blend(running_mean + channel, mean[channel]);
    if (running_var) blend(running_var + channel, var[channel] * unbiased);
  }
}

template <>
void run(const BatchNormForward& op, int threads) {
  with_types(op.dtype, op.param_dtype, [&]<class T, class P>(Type<T>, Type<P>) { forward<T, P>(op, threads); });
}
template <>
void run(const BatchNormBackward& op, int threads) {
  with_types(op.dtype, op.param_dtype, [&]<class T, class P>(Type<T>, Type<P>) { backward<T, P>(op, threads); });
}
template <>
void run(const BatchNormUpdate& op, int) {
  with_types(op.dtype, op.dtype, [&]<class T, class P>(Type<T>, Type<P>) { update<P>(op); });
}

}  // namespace normext::cpu::NORMEXT_ISA

template void normext::cpu::run_on<normext::cpu::kIsa>(const BatchNormForward&, int);
template void normext::cpu::run_on<normext::cpu::kIsa>(const BatchNormBackward&, int);
template void normext::cpu::run_on<normext::cpu::kIsa>(const BatchNormUpdate&, int);
