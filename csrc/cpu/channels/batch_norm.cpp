// batch_norm.cpp -- BatchNorm on the CPU: sums per channel, then one affine map per channel.
#include "cpu/channels/arrays.h"
#include "cpu/channels/channels.h"
#include "cpu/channels/maps.h"
#include "cpu/kernel.h"
#include "ops/channel_norm.h"

namespace normext::cpu::NORMEXT_ISA {

// y = x * scale + shift, for half types where the mean is near zero: see near_zero. kNormal: no y is a subnormal
// number.
template <class T, bool kNormal>
struct NormalizeNearZero {
  static constexpr int kInputs = 1, kCoefficients = 2;
  NORMEXT_INLINE auto apply(const Vector<T> (&in)[1], const Vector<T> (&k)[2]) const {
    if constexpr (kNormal)
      return NormalFloats{fma(in[0], k[0], k[1])};
    else
      return fma(in[0], k[0], k[1]);
  }
};

// They are none if the shift is no smaller than this: where x * scale, of 8 and 24 bits, comes so close to it that they
// cancel, both and so their sum are multiples of 2^-32 of the power of two below it.
constexpr float kNormalShift = 0x1p-90f;

// dx = (dy + level + xhat * slope) * scale, with xhat = (x - mean) * rstd. (rstd joined to the slope would underflow in
// float32 for deviations of 1e30.)
template <class T>
struct TrainingGradient {
  static constexpr int kInputs = 2, kCoefficients = 5;  // dy, x; scale, mean, rstd, slope, level
  NORMEXT_INLINE Vector<T> apply(const Vector<T> (&in)[2], const Vector<T> (&k)[5]) const {
    return fma((in[1] - k[1]) * k[2], k[3], in[0] + k[4]) * k[0];
  }
};

// dx = dy * scale
template <class T>
struct EvaluationGradient {
  static constexpr int kInputs = 1, kCoefficients = 1;
  NORMEXT_INLINE Vector<T> apply(const Vector<T> (&in)[1], const Vector<T> (&k)[1]) const { return in[0] * k[0]; }
};

// Loops over channels are plain, and g++ makes vector code of them: `ivdep` says that arrays do not overlap where they
// are too many for it to find out.
//
// `running` are the running mean and variance, if they are what it normalizes by.
template <class T>
void forward(const BatchNormForward& op, const ChannelParameters<Scalar<T>>& parameters,
             const ChannelParameters<Scalar<T>>& running, int threads) {
  using S = Scalar<T>;
  const T *const x = static_cast<const T*>(op.input), *const residual = static_cast<const T*>(op.residual);
  S *mean = static_cast<S*>(op.mean), *rstd = static_cast<S*>(op.rstd), *var = static_cast<S*>(op.var);
  const double eps = op.eps;
  const bool evaluates = op.running_mean || op.given;

  // A slice of float64 elements is still in cache when it is summed a second time.
  const Channels channels(op.shape, threads, op.residual ? 2 : 1, sizeof(T), !evaluates,
                          kTwoPasses<T> ? kCachedElements : 0);
  const int64_t all = op.shape.channels, partials = evaluates ? 0 : channels.slices() * all;
  const ChannelArrays<S, 1> shifts(partials);
  const ChannelArrays<double, 2> sums(partials);  // of d and d^2, d = x - shift: see MomentSums
  const ChannelArrays<S, 5> coefficients(all);    // of Normalize, shift near zero, how far it is
  const bool activates = op.activation.kind != Activation::Kind::none, is_plain = !activates && !op.residual;

  // What FirstMomentSums are taken about, for all of a slice's channels.
  const auto few = [&](int64_t slice) { return kTwoPasses<T> || channels.count(slice) < kFew; };
  const auto choose_shift = [&](int64_t block, int64_t slice) {
    S* const shift = shifts[0] + slice * all;
    if (kDotSums<T>)
      std::fill(shift + channels.channel_begin(block), shift + channels.channel_begin(block + 1), 0);
    else
      channels.sample(block, slice, x, shift);
  };
  // Sums again what was not sound.
  const auto mend = [&](int64_t block, int64_t slice, bool summed) {
    const int64_t begin = channels.channel_begin(block), end = channels.channel_begin(block + 1);
    const double count = channels.count(slice);
    S* const shift = shifts[0] + slice * all;
    double *const first = sums[0] + slice * all, *const second = sums[1] + slice * all;
    const auto sum = [&](const auto& none) { channels.reduce(none, block, slice, {x}, {shift}, {first, second}); };
    const auto all_sound = [&] {
      int64_t unsound = 0;  // as wide as a double, for vector code
      for (int64_t c = begin; c < end; ++c) unsound |= sound(count, first[c], second[c], eps) ? 0 : 1;
      return unsound == 0;
    };
    if (summed && all_sound()) return;
    if (kDotSums<T> && summed) {
      channels.sample(block, slice, x, shift);
      sum(MomentSums<T>());
      if (all_sound()) return;
    }
    for (int64_t c = begin; c < end; ++c) shift[c] = load_one(x + channels.first_element(c));
    sum(WideMomentSums<T>());
    if (!kTwoPasses<T>) return;
    for (int64_t c = begin; c < end; ++c) shift[c] += first[c] / count;
    sum(WideMomentSums<T>());
  };
  const auto reduce = [&](int64_t block, int64_t slice) {
    const int64_t offset = slice * all;
    if (few(slice)) return mend(block, slice, false);
    choose_shift(block, slice);
    channels.reduce(FirstMomentSums<T>(), block, slice, {x}, {shifts[0] + offset},
                    {sums[0] + offset, sums[1] + offset});
    mend(block, slice, true);
  };
  const auto finish = [&](int64_t begin, int64_t end) {
    const int64_t size = end - begin;
    double means[kFinishedAtOnce], variances[kFinishedAtOnce];
    if (op.running_mean) {
      std::copy_n(running.weight + begin, size, means);
      std::copy_n(running.bias + begin, size, variances);
    } else if (op.given) {
      for (int64_t i = 0; i < size; ++i) {
        means[i] = op.given[begin + i];
        variances[i] = op.given[all + begin + i] / op.given[2 * all];
      }
    } else {
      std::fill_n(means, size, 0);
      std::fill_n(variances, size, 0);
      double count = 0;
      for (int64_t slice = 0; slice < channels.slices(); ++slice) {
        const double more = channels.count(slice);
        const int64_t offset = slice * all + begin;
        const S* const about = shifts[0] + offset;
        const double *const first = sums[0] + offset, *const second = sums[1] + offset;
        for (int64_t i = 0; i < size; ++i) {
          Moments total{count, means[i], variances[i]};
          total += moments_from_sums(more, about[i], first[i], second[i]);
          means[i] = total.mean;
          variances[i] = total.m2;
        }
        count += more;
      }
      if (op.found) {
        std::copy_n(means, size, op.found + begin);
        std::copy_n(variances, size, op.found + all + begin);
        return;
      }
      for (int64_t i = 0; i < size; ++i) variances[i] /= count;
      for (int64_t i = 0; i < size; ++i) var[begin + i] = static_cast<S>(variances[i]);
    }
    const S *const weight = parameters.weight + begin, *const bias = parameters.bias + begin;
    S *const m = mean + begin, *const r = rstd + begin;
    S *const high = coefficients[0] + begin, *const scale = coefficients[1] + begin;
    S *const shift = coefficients[2] + begin, *const near_shift = coefficients[3] + begin;
    S* const far = coefficients[4] + begin;
#pragma GCC ivdep
    for (int64_t i = 0; i < size; ++i) {
      const double exact_mean = means[i], exact_rstd = reciprocal_std(variances[i], eps);
      high[i] = m[i] = static_cast<S>(exact_mean);
      r[i] = static_cast<S>(exact_rstd);
      const double factor = exact_rstd * weight[i], low = std::isinf(exact_mean) ? 0 : exact_mean - high[i];
      scale[i] = static_cast<S>(factor);
      shift[i] = static_cast<S>(bias[i] - low * factor);
      near_shift[i] = static_cast<S>(bias[i] - exact_mean * factor);
      far[i] = !near_zero(exact_mean, exact_rstd) ? 2 : std::abs(near_shift[i]) >= kNormalShift ? 0 : 1;
    }
  };
  T* const y = static_cast<T*>(op.output);
  // Calls f(map, its coefficients) with the map that a block's channels allow.
  const auto with_map = [&](int64_t block, const auto& f) {
    const S* const near[2] = {coefficients[1], coefficients[3]};
    const S* const anywhere[3] = {coefficients[0], coefficients[1], coefficients[2]};
    if constexpr (sizeof(T) == 2) {
      const S far = channels.largest(block, coefficients[4]);
      if (far == 0) return f(NormalizeNearZero<T, kLooksForSubnormals<T>>(), near);
      if (far == 1) return f(NormalizeNearZero<T, false>(), near);
    }
    f(Normalize<T>(), anywhere);
  };
  const auto map_and_activate = [&](int64_t block, int64_t slice) {
    const S* const k[3] = {coefficients[0], coefficients[1], coefficients[2]};
    const Activate<T> activate(op.activation);
    if (!activates)
      channels.map(Normalize<T, Identity, true>(), block, slice, {x, residual}, y, k);
    else if (residual)
      channels.map(Normalize<T, Activate<T>, true>{activate}, block, slice, {x, residual}, y, k);
    else
      channels.map(Normalize<T, Activate<T>>{activate}, block, slice, {x}, y, k);
  };
  const auto map = [&](int64_t block, int64_t slice) {
    if (op.found) return;
    if (!is_plain) return map_and_activate(block, slice);
    with_map(block, [&](const auto& map, const auto& k) { channels.map(map, block, slice, {x}, y, k); });
  };
  const auto map_and_reduce = [&](int64_t block, int64_t slice) {
    if (few(slice) || !is_plain || op.found) {
      map(block, slice);
      return reduce(block + 1, slice);
    }
    choose_shift(block + 1, slice);
    const int64_t offset = slice * all;
    with_map(block, [&](const auto& map, const auto& k) {
      channels.map_and_reduce(map, FirstMomentSums<T>(), block, slice, {x}, y, k, {shifts[0] + offset},
                              {sums[0] + offset, sums[1] + offset});
    });
    mend(block + 1, slice, true);
  };
  channels.run(reduce, finish, map, map_and_reduce);
}

// The gradients of weight and bias go to two arrays, so that none of this depends on their dtype.
template <class T>
void backward(const BatchNormBackward& op, const ChannelParameters<Scalar<T>>& parameters,
              const ChannelArrays<Scalar<T>, 2>& gradients, int threads) {
  using S = Scalar<T>;
  const T *dy = static_cast<const T*>(op.grad_output), *x = static_cast<const T*>(op.input);
  const S *mean = static_cast<const S*>(op.mean), *rstd = static_cast<const S*>(op.rstd);
  T* dx = static_cast<T*>(op.grad_input);

  const bool sums_needed = !op.given && (op.grad_weight || op.grad_bias || op.training);
  const Channels channels(op.shape, threads, 2, sizeof(T), sums_needed);
  const int64_t all = op.shape.channels;
  const double count = op.moments ? op.moments[2 * all] : static_cast<double>(op.shape.batch * op.shape.plane);
  const ChannelArrays<double, 3> sums(sums_needed || op.given ? channels.slices() * all : 0);  // of GradientSums
  const ChannelArrays<S, 6> coefficients(all);  // scale, slope, level; slope and level near zero, whether it is far

  // Whether sums by dot products may do: the mean is near zero in units of the deviation, as in sound(). (In evaluation
  // the deviation is a given number, and says nothing of x.)
  const auto may_dot = [&](int64_t block) {
    int64_t unsound = 0;  // as wide as a double, for vector code
    for (int64_t c = channels.channel_begin(block); c < channels.channel_begin(block + 1); ++c)
      unsound |= (std::abs(mean[c] * rstd[c]) <= 2) & (rstd[c] < 0x1p80f) ? 0 : 1;
    return kDotSums<T> && op.training && unsound == 0;
  };
  // Makes sums of g * xhat out of those of g * x, and says whether these were sound. They make up for no rounding of
  // the mean, which near zero is below theirs.
  const auto settle = [&](int64_t block, int64_t slice) {
    const int64_t offset = slice * all;
    double *const g = sums[0] + offset, *const g_xhat = sums[1] + offset, *const xhat = sums[2] + offset;
    const double n = channels.count(slice);
    int64_t unsound = 0;
    for (int64_t c = channels.channel_begin(block); c < channels.channel_begin(block + 1); ++c) {
      unsound |= settle_products(n, mean[c], rstd[c], g[c], g_xhat[c]) ? 0 : 1;
      xhat[c] = 0;
    }
    return unsound == 0;
  };
  using First = std::conditional_t<kDotSums<T>, DotProductSums<false>, GradientSums<T>>;
  const auto sum = [&]<class Sum>(const Sum& none, int64_t block, int64_t slice) {
    channels.reduce(none, block, slice, {dy, x}, {mean, rstd}, sums.template first<Sum::kSums>(slice * all).at);
  };
  const auto reduce = [&](int64_t block, int64_t slice) {
    if (may_dot(block)) {
      sum(First(), block, slice);
      if (settle(block, slice)) return;
    }
    sum(GradientSums<T>(), block, slice);
  };
  const auto finish = [&](int64_t begin, int64_t end) {
    const int64_t size = end - begin;
    const S *const m = mean + begin, *const r = rstd + begin;
    const S* const weight = parameters.weight + begin;
    S* const scale = coefficients[0] + begin;
    for (int64_t i = 0; i < size; ++i)
      scale[i] = static_cast<S>(static_cast<double>(r[i]) * static_cast<double>(weight[i]));
    if (!sums_needed && !op.given) return;
    double *const g = sums[0] + begin, *const g_xhat = sums[1] + begin, *const xhat = sums[2] + begin;
    for (int64_t slice = 1; sums_needed && slice < channels.slices(); ++slice)
      for (double* const total : {g, g_xhat, xhat})
        for (int64_t i = 0; i < size; ++i) total[i] += total[slice * all + i];
    // In a batch in parts what the mean is off by is known: each part corrects its sums by it.
    const auto offset_of = [&](int64_t i) { return (op.moments[begin + i] - m[i]) * r[i]; };
    if (op.found) {
      for (int64_t i = 0; i < size; ++i) {
        op.found[begin + i] = g[i];
        op.found[all + begin + i] = g_xhat[i] - offset_of(i) * g[i];
      }
      return;
    }
    if (op.given) {
      for (int64_t i = 0; i < size; ++i) {
        g[i] = op.given[begin + i];
        g_xhat[i] = op.given[all + begin + i] + offset_of(i) * g[i];
        xhat[i] = offset_of(i) * count;
      }
    }
    // In evaluation the mean is a given number, not the data's: nothing to correct.
    if (!op.training) std::fill_n(xhat, size, 0);
    S *const dw = gradients[0] + begin, *const db = gradients[1] + begin;
    S *const slope = coefficients[1] + begin, *const level = coefficients[2] + begin;
    S *const near_slope = coefficients[3] + begin, *const near_level = coefficients[4] + begin;
    S* const far = coefficients[5] + begin;
    const double n = count;  // a copy: what is referred to may change with every store
#pragma GCC ivdep
    for (int64_t i = 0; i < size; ++i) {
      const Gradients total{g[i], g_xhat[i], xhat[i]};
      const double offset = total.offset(n), corrected = total.corrected(n);
      dw[i] = static_cast<S>(corrected);
      db[i] = static_cast<S>(total.g);
      const double exact_slope = -corrected / n, exact_level = (offset * corrected - total.g) / n;
      slope[i] = static_cast<S>(exact_slope);
      level[i] = static_cast<S>(exact_level);
      const double near = exact_slope * r[i] * scale[i], magnitude = std::abs(near);
      near_slope[i] = static_cast<S>(near);
      near_level[i] = static_cast<S>(exact_level * scale[i] - m[i] * near);
      // What is multiplied out must not leave float32, as it does for deviations of 1e30.
      const bool in_range = (magnitude > 0x1p-100) & (magnitude < 0x1p100);
      far[i] = near_zero(m[i], r[i]) & (in_range | (near == 0)) ? 0 : 1;
    }
  };
  // In training: as forward.
  const auto with_map = [&](int64_t block, const auto& f) {
    const S* const near[3] = {coefficients[0], coefficients[3], coefficients[4]};
    const S* const anywhere[5] = {coefficients[0], mean, rstd, coefficients[1], coefficients[2]};
    channels.largest(block, coefficients[5]) == 0 ? f(GradientNearZero<T>(), near) : f(TrainingGradient<T>(), anywhere);
  };
  const auto map = [&](int64_t block, int64_t slice) {
    if (!dx) return;
    if (!op.training)
      channels.map(EvaluationGradient<T>(), block, slice, {dy}, dx, {coefficients[0]});
    else
      with_map(block, [&](const auto& map, const auto& k) { channels.map(map, block, slice, {dy, x}, dx, k); });
  };
  const auto map_and_reduce = [&](int64_t block, int64_t slice) {
    if (!dx || !op.training || (kDotSums<T> && !may_dot(block + 1))) {
      map(block, slice);
      return reduce(block + 1, slice);
    }
    const auto totals = sums.template first<First::kSums>(slice * all);
    with_map(block, [&](const auto& map, const auto& k) {
      channels.map_and_reduce(map, First(), block, slice, {dy, x}, dx, k, {mean, rstd}, totals.at);
    });
    if (kDotSums<T> && !settle(block + 1, slice)) sum(GradientSums<T>(), block + 1, slice);
  };
  channels.run(reduce, finish, map, map_and_reduce);
}

// Where an activation follows without a residual: sums and maps go through its derivative.
template <class T>
void backward_through(const BatchNormBackward& op, const ChannelParameters<Scalar<T>>& parameters,
                      const ChannelArrays<Scalar<T>, 2>& gradients, int threads) {
  using S = Scalar<T>;
  const T* const in[2] = {static_cast<const T*>(op.grad_output), static_cast<const T*>(op.input)};
  const S *mean = static_cast<const S*>(op.mean), *rstd = static_cast<const S*>(op.rstd);
  const Activate<T> activate(op.activation);
  const bool sums_needed = op.grad_weight || op.grad_bias || op.training;
  const Channels channels(op.shape, threads, 2, sizeof(T), sums_needed);
  const int64_t all = op.shape.channels;
  const double count = static_cast<double>(op.shape.batch * op.shape.plane);
  const ChannelArrays<double, 3> sums(sums_needed ? channels.slices() * all : 0);
  const ChannelArrays<S, 3> found(all);  // slope and level of WeightedGradient, the factor of GradientThrough
  T* const dx = static_cast<T*>(op.grad_input);

  const auto reduce = [&](int64_t block, int64_t slice) {
    channels.reduce(GradientSumsThrough<T>(activate), block, slice, in,
                    {mean, rstd, parameters.weight, parameters.bias}, sums.template first<3>(slice * all).at);
  };
  const auto finish = [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) found[2][c] = parameters.weight[c] * rstd[c];
    if (!sums_needed) return;
    for (int64_t c = begin; c < end; ++c) {
      Gradients total;
      for (int64_t slice = 0; slice < channels.slices(); ++slice)
        total += {sums[0][slice * all + c], sums[1][slice * all + c], sums[2][slice * all + c]};
      if (!op.training) total.xhat = 0;  // the mean is a given number: nothing to correct
      const double corrected = total.corrected(count), w = parameters.weight[c];
      gradients[0][c] = static_cast<S>(corrected);
      gradients[1][c] = static_cast<S>(total.g);
      found[0][c] = static_cast<S>(-corrected * w / count);
      found[1][c] = static_cast<S>((total.offset(count) * corrected - total.g) * w / count);
    }
  };
  const auto map = [&](int64_t block, int64_t slice) {
    if (!dx) return;
    if (op.training)
      channels.map(WeightedGradient<T, Activate<T>>{activate}, block, slice, in, dx,
                   {mean, rstd, parameters.weight, parameters.bias, found[0], found[1]});
    else
      channels.map(GradientThrough<T, false>{activate}, block, slice, in, dx,
                   {mean, rstd, parameters.weight, parameters.bias, found[2]});
  };
  channels.run(reduce, finish, map, [&](int64_t block, int64_t slice) {
    map(block, slice);
    reduce(block + 1, slice);
  });
}

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

// Through an activation, if there is one. With a residual its gradient is stored first, rounded, and what is below is
// the backward of the norm alone.
template <class T>
void backward_of_all(const BatchNormBackward& op, const ChannelParameters<Scalar<T>>& parameters,
                     const ChannelArrays<Scalar<T>, 2>& gradients, int threads) {
  if (op.activation.kind == Activation::Kind::none) return backward<T>(op, parameters, gradients, threads);
  if (!op.residual && !op.grad_residual) return backward_through<T>(op, parameters, gradients, threads);
  const Scratch<T> own(op.grad_residual ? 0 : op.shape.batch * op.shape.channels * op.shape.plane);
  BatchNormBackward rest = op;
  T* const g = op.grad_residual ? static_cast<T*>(op.grad_residual) : own;
  backward_to_sum(op, parameters, g, threads);
  rest.grad_output = g;
  if (rest.grad_input || rest.grad_weight || rest.grad_bias) backward<T>(rest, parameters, gradients, threads);
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
    forward<T>(op, parameters, running, threads);
  });
}
template <>
void run(const BatchNormBackward& op, int threads) {
  with_types(op.dtype, op.param_dtype, [&]<class T, class P>(Type<T>, Type<P> p) {
    const int64_t channels = op.shape.channels;
    const ChannelParameters<Scalar<T>> parameters(p, op.weight, op.bias, channels);
    const ChannelArrays<Scalar<T>, 2> gradients(channels);
    backward_of_all<T>(op, parameters, gradients, threads);
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
