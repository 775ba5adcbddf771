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
};

// y = x * scale + shift, for half types where the mean is near zero: see near_zero.
template <class T>
struct NormalizeNearZero {
  static constexpr int kInputs = 1, kCoefficients = 2;
  static Vector<T> apply(const Vector<T> (&in)[1], const Vector<T> (&k)[2]) { return fma(in[0], k[0], k[1]); }
};

// dx = (dy + level + xhat * slope) * scale, with xhat = (x - mean) * rstd. (rstd joined to the slope would underflow in
// float32 for deviations of 1e30.)
template <class T>
struct TrainingGradient {
  static constexpr int kInputs = 2, kCoefficients = 5;  // dy, x; scale, mean, rstd, slope, level
  static Vector<T> apply(const Vector<T> (&in)[2], const Vector<T> (&k)[5]) {
    return fma((in[1] - k[1]) * k[2], k[3], in[0] + k[4]) * k[0];
  }
};

// dx = dy * scale + (x * slope + level), where the mean is near zero.
template <class T>
struct TrainingGradientNearZero {
  static constexpr int kInputs = 2, kCoefficients = 3;  // dy, x; scale, slope, level
  static Vector<T> apply(const Vector<T> (&in)[2], const Vector<T> (&k)[3]) {
    return fma(in[0], k[0], fma(in[1], k[1], k[2]));
  }
};

// dx = dy * scale
template <class T>
struct EvaluationGradient {
  static constexpr int kInputs = 1, kCoefficients = 1;
  static Vector<T> apply(const Vector<T> (&in)[1], const Vector<T> (&k)[1]) { return in[0] * k[0]; }
};

// kArrays arrays with an element for each of `size` channels, or channels of slices.
template <class Number, int kArrays>
class ChannelArrays {
 public:
  explicit ChannelArrays(int64_t size) : size_(size), numbers_(kArrays * size) {}
  Number* operator[](int array) const { return numbers_ + array * size_; }

 private:
  int64_t size_;
  Scratch<Number> numbers_;
};

// Loops over channels are plain, and g++ makes vector code of them.
template <class T, class P>
void forward(const BatchNormForward& op, int threads) {
  using S = Scalar<T>;
  const T* const in[1] = {static_cast<const T*>(op.input)};
  const P *weight = static_cast<const P*>(op.weight), *bias = static_cast<const P*>(op.bias);
  const P *running_mean = static_cast<const P*>(op.running_mean), *running_var = static_cast<const P*>(op.running_var);
  S *mean = static_cast<S*>(op.mean), *rstd = static_cast<S*>(op.rstd), *var = static_cast<S*>(op.var);
  const double eps = op.eps;

  // A slice of float64 elements is still in cache when it is summed a second time.
  const Channels channels(op.shape, threads, 1, sizeof(T), !running_mean, kTwoPasses<T> ? kCachedElements : 0);
  const int64_t all = op.shape.channels, partials = running_mean ? 0 : channels.slices() * all;
  const ChannelArrays<S, 1> shifts(partials);
  const ChannelArrays<double, 2> sums(partials);  // of d and d^2, d = x - shift: see MomentSums
  const ChannelArrays<S, 7> coefficients(all);    // of Normalize, shift near zero, whether it is far; weight and bias
  const ChannelArrays<double, 3> moments(all);    // mean, variance, rstd

  // What FirstMomentSums are taken about, for all of a slice's channels.
  const auto few = [&](int64_t slice) { return kTwoPasses<T> || channels.count(slice) < kFew; };
  const auto choose_shift = [&](int64_t block, int64_t slice) {
    S* const shift = shifts[0] + slice * all;
    if (kDotSums<T>)
      std::fill(shift + channels.channel_begin(block), shift + channels.channel_begin(block + 1), 0);
    else
      channels.sample(block, slice, in[0], shift);
  };
  // Sums again what was not sound.
  const auto mend = [&](int64_t block, int64_t slice, bool summed) {
    const int64_t begin = channels.channel_begin(block), end = channels.channel_begin(block + 1);
    const double count = channels.count(slice);
    S* const shift = shifts[0] + slice * all;
    double *const first = sums[0] + slice * all, *const second = sums[1] + slice * all;
    const auto sum = [&]<class Sum>() { channels.template reduce<Sum, T>(block, slice, in, {shift}, {first, second}); };
    const auto all_sound = [&] {
      int64_t unsound = 0;  // as wide as a double, for vector code
      for (int64_t c = begin; c < end; ++c) unsound |= sound(count, first[c], second[c], eps) ? 0 : 1;
      return unsound == 0;
    };
    if (summed && all_sound()) return;
    if (kDotSums<T> && summed) {
      channels.sample(block, slice, in[0], shift);
      sum.template operator()<MomentSums<T>>();
      if (all_sound()) return;
    }
    for (int64_t c = begin; c < end; ++c) shift[c] = load_one(in[0] + channels.first_element(c));
    sum.template operator()<WideMomentSums<T>>();
    if (!kTwoPasses<T>) return;
    for (int64_t c = begin; c < end; ++c) shift[c] += first[c] / count;
    sum.template operator()<WideMomentSums<T>>();
  };
  const auto reduce = [&](int64_t block, int64_t slice) {
    const int64_t offset = slice * all;
    if (few(slice)) return mend(block, slice, false);
    choose_shift(block, slice);
    channels.template reduce<FirstMomentSums<T>, T>(block, slice, in, {shifts[0] + offset},
                                                    {sums[0] + offset, sums[1] + offset});
    mend(block, slice, true);
  };
  const auto finish = [&](int64_t begin, int64_t end) {
    double *const m = moments[0], *const v = moments[1], *const r = moments[2];
    S *const high = coefficients[0], *const scale = coefficients[1], *const shift = coefficients[2];
    S *const near_shift = coefficients[3], *const far = coefficients[4];
    S *const w = coefficients[5], *const b = coefficients[6];
    if (running_mean) {
      load_array(running_mean + begin, end - begin, 0, w + begin);
      load_array(running_var + begin, end - begin, 0, b + begin);
      for (int64_t c = begin; c < end; ++c) m[c] = w[c], v[c] = b[c];
    } else {
      std::fill(m + begin, m + end, 0);
      std::fill(v + begin, v + end, 0);
      double count = 0;
      for (int64_t slice = 0; slice < channels.slices(); ++slice) {
        const double more = channels.count(slice);
        const S* const shift = shifts[0] + slice * all;
        const double *const first = sums[0] + slice * all, *const second = sums[1] + slice * all;
        for (int64_t c = begin; c < end; ++c) {
          Moments total{count, m[c], v[c]};
          total += moments_from_sums(more, shift[c], first[c], second[c]);
          m[c] = total.mean;
          v[c] = total.m2;
        }
        count += more;
      }
      for (int64_t c = begin; c < end; ++c) v[c] /= count;
      for (int64_t c = begin; c < end; ++c) var[c] = static_cast<S>(v[c]);
    }
    load_array(weight ? weight + begin : nullptr, end - begin, 1, w + begin);
    load_array(bias ? bias + begin : nullptr, end - begin, 0, b + begin);
    for (int64_t c = begin; c < end; ++c) r[c] = reciprocal_std(v[c], eps);
    for (int64_t c = begin; c < end; ++c) {
      high[c] = mean[c] = static_cast<S>(m[c]);
      rstd[c] = static_cast<S>(r[c]);
      const double factor = r[c] * w[c], low = std::isinf(m[c]) ? 0 : m[c] - high[c];
      scale[c] = static_cast<S>(factor);
      shift[c] = static_cast<S>(b[c] - low * factor);
      near_shift[c] = static_cast<S>(b[c] - m[c] * factor);
      far[c] = near_zero(m[c], r[c]) ? 0 : 1;
    }
  };
  T* const y = static_cast<T*>(op.output);
  const auto is_near = [&](int64_t block) { return sizeof(T) == 2 && channels.none(block, coefficients[4]); };
  const auto map = [&](int64_t block, int64_t slice) {
    if (is_near(block))
      channels.template map<NormalizeNearZero<T>, T>(block, slice, in, y, {coefficients[1], coefficients[3]});
    else
      channels.template map<Normalize<T>, T>(block, slice, in, y, {coefficients[0], coefficients[1], coefficients[2]});
  };
  const auto map_and_reduce = [&](int64_t block, int64_t slice) {
    if (few(slice)) {
      map(block, slice);
      return reduce(block + 1, slice);
    }
    choose_shift(block + 1, slice);
    const int64_t offset = slice * all;
    double* const totals[2] = {sums[0] + offset, sums[1] + offset};
    if (is_near(block))
      channels.template map_and_reduce<NormalizeNearZero<T>, FirstMomentSums<T>, T>(
          block, slice, in, y, {coefficients[1], coefficients[3]}, {shifts[0] + offset}, totals);
    else
      channels.template map_and_reduce<Normalize<T>, FirstMomentSums<T>, T>(
          block, slice, in, y, {coefficients[0], coefficients[1], coefficients[2]}, {shifts[0] + offset}, totals);
    mend(block + 1, slice, true);
  };
  channels.run(reduce, finish, map, map_and_reduce);
}

template <class T, class P>
void backward(const BatchNormBackward& op, int threads) {
  using S = Scalar<T>;
  const T *dy = static_cast<const T*>(op.grad_output), *x = static_cast<const T*>(op.input);
  const S *mean = static_cast<const S*>(op.mean), *rstd = static_cast<const S*>(op.rstd);
  const P* weight = static_cast<const P*>(op.weight);
  P *grad_weight = static_cast<P*>(op.grad_weight), *grad_bias = static_cast<P*>(op.grad_bias);
  T* dx = static_cast<T*>(op.grad_input);

  const bool sums_needed = grad_weight || grad_bias || op.training;
  const Channels channels(op.shape, threads, 2, sizeof(T), sums_needed);
  const int64_t all = op.shape.channels;
  const double count = static_cast<double>(op.shape.batch * op.shape.plane);
  const ChannelArrays<double, 3> sums(sums_needed ? channels.slices() * all : 0);  // of GradientSums
  // scale, slope, level; slope and level near zero, whether it is far; then the gradients of weight and bias
  const ChannelArrays<S, 8> coefficients(all);

  // Whether sums by dot products may do: the mean is near zero in units of the deviation, as in sound(). (In evaluation
  // the deviation is a given number, and says nothing of x.)
  const auto may_dot = [&](int64_t block) {
    int64_t unsound = 0;  // as wide as a double, for vector code
    for (int64_t c = channels.channel_begin(block); c < channels.channel_begin(block + 1); ++c)
      unsound |= (std::abs(mean[c] * rstd[c]) <= 2) & (rstd[c] < 0x1p80f) ? 0 : 1;
    return kDotSums<T> && op.training && unsound == 0;
  };
  // Makes sums of g * xhat and xhat out of those of g * x and x, and says whether these were sound.
  const auto settle = [&](int64_t block, int64_t slice) {
    const int64_t offset = slice * all;
    double *const g = sums[0] + offset, *const g_xhat = sums[1] + offset, *const xhat = sums[2] + offset;
    const double n = channels.count(slice);
    int64_t unsound = 0;
    for (int64_t c = channels.channel_begin(block); c < channels.channel_begin(block + 1); ++c) {
      const double about_mean = g_xhat[c] - mean[c] * g[c];
      unsound |= products_sound(n, g[c], about_mean) & (std::abs(xhat[c]) < 0x1p120) ? 0 : 1;
      g_xhat[c] = about_mean * rstd[c];
      xhat[c] = (xhat[c] - n * mean[c]) * rstd[c];
    }
    return unsound == 0;
  };
  using First = std::conditional_t<kDotSums<T>, DotGradientSums, GradientSums<T>>;
  const auto sum = [&]<class Sum>(int64_t block, int64_t slice) {
    const int64_t offset = slice * all;
    channels.template reduce<Sum, T>(block, slice, {dy, x}, {mean, rstd},
                                     {sums[0] + offset, sums[1] + offset, sums[2] + offset});
  };
  const auto reduce = [&](int64_t block, int64_t slice) {
    if (may_dot(block)) {
      sum.template operator()<First>(block, slice);
      if (settle(block, slice)) return;
    }
    sum.template operator()<GradientSums<T>>(block, slice);
  };
  const auto finish = [&](int64_t begin, int64_t end) {
    S *const scale = coefficients[0], *const slope = coefficients[1], *const level = coefficients[2];
    S *const near_slope = coefficients[3], *const near_level = coefficients[4], *const far = coefficients[5];
    S *const dw = coefficients[6], *const db = coefficients[7];
    load_array(weight ? weight + begin : nullptr, end - begin, 1, scale + begin);
    for (int64_t c = begin; c < end; ++c)
      scale[c] = static_cast<S>(static_cast<double>(rstd[c]) * static_cast<double>(scale[c]));
    if (!sums_needed) return;
    for (int64_t slice = 1; slice < channels.slices(); ++slice)
      for (int i = 0; i < 3; ++i)
        for (int64_t c = begin; c < end; ++c) sums[i][c] += sums[i][slice * all + c];
    for (int64_t c = begin; c < end; ++c) {
      const Gradients total{sums[0][c], sums[1][c], sums[2][c]};
      // In evaluation the mean is a given number, not the data's: nothing to correct.
      const double offset = op.training ? total.offset(count) : 0;
      const double g_xhat = op.training ? total.corrected(count) : total.g_xhat;
      dw[c] = static_cast<S>(g_xhat);
      db[c] = static_cast<S>(total.g);
      const double exact_slope = -g_xhat / count, exact_level = (offset * g_xhat - total.g) / count;
      slope[c] = static_cast<S>(exact_slope);
      level[c] = static_cast<S>(exact_level);
      const double near = exact_slope * rstd[c] * scale[c], size = std::abs(near);
      near_slope[c] = static_cast<S>(near);
      near_level[c] = static_cast<S>(exact_level * scale[c] - mean[c] * near);
      // What is multiplied out must not leave float32, as it does for deviations of 1e30.
      const bool in_range = (size > 0x1p-100) & (size < 0x1p100);
      far[c] = near_zero(mean[c], rstd[c]) & (in_range | (near == 0)) ? 0 : 1;
    }
    store_array(dw + begin, end - begin, grad_weight ? grad_weight + begin : nullptr);
    store_array(db + begin, end - begin, grad_bias ? grad_bias + begin : nullptr);
  };
  const auto is_near = [&](int64_t block) { return channels.none(block, coefficients[5]); };
  const auto map = [&](int64_t block, int64_t slice) {
    if (!dx) return;
    if (!op.training)
      channels.template map<EvaluationGradient<T>, T>(block, slice, {dy}, dx, {coefficients[0]});
    else if (is_near(block))
      channels.template map<TrainingGradientNearZero<T>, T>(block, slice, {dy, x}, dx,
                                                            {coefficients[0], coefficients[3], coefficients[4]});
    else
      channels.template map<TrainingGradient<T>, T>(block, slice, {dy, x}, dx,
                                                    {coefficients[0], mean, rstd, coefficients[1], coefficients[2]});
  };
  const auto map_and_reduce = [&](int64_t block, int64_t slice) {
    if (!dx || !op.training || (kDotSums<T> && !may_dot(block + 1))) {
      map(block, slice);
      return reduce(block + 1, slice);
    }
    const int64_t offset = slice * all;
    double* const totals[3] = {sums[0] + offset, sums[1] + offset, sums[2] + offset};
    if (is_near(block))
      channels.template map_and_reduce<TrainingGradientNearZero<T>, First, T>(
          block, slice, {dy, x}, dx, {coefficients[0], coefficients[3], coefficients[4]}, {mean, rstd}, totals);
    else
      channels.template map_and_reduce<TrainingGradient<T>, First, T>(
          block, slice, {dy, x}, dx, {coefficients[0], mean, rstd, coefficients[1], coefficients[2]}, {mean, rstd},
          totals);
    if (kDotSums<T> && !settle(block + 1, slice)) sum.template operator()<GradientSums<T>>(block + 1, slice);
  };
  channels.run(reduce, finish, map, map_and_reduce);
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
