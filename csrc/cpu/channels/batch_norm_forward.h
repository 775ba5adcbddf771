// batch_norm_forward.h -- BatchNorm forward on the CPU: sums per channel, their statistics, then one affine map per
// channel. Phases are not inlined: the loops over blocks have several calls of each.
#pragma once
#include "cpu/channels/arrays.h"
#include "cpu/channels/channels.h"
#include "cpu/channels/maps.h"
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

// Loops over channels are plain, and g++ makes vector code of them: `ivdep` says that arrays do not overlap where they
// are too many for it to find out.
template <class T>
class BatchForward {
  using S = Scalar<T>;

 public:
  // `running` are the running mean and variance, if they are what it normalizes by. A slice of float64 elements is
  // still in cache when it is summed a second time.
  BatchForward(const BatchNormForward& op, const ChannelParameters<S>& parameters, const ChannelParameters<S>& running,
               int threads)
      : op_(op),
        parameters_(parameters),
        running_(running),
        x_(static_cast<const T*>(op.input)),
        residual_(static_cast<const T*>(op.residual)),
        y_(static_cast<T*>(op.output)),
        activates_(op.activation.kind != Activation::Kind::none),
        sums_needed_(!op.running_mean && !op.given),
        all_(op.shape.channels),
        channels_(op.shape, threads, op.residual ? 2 : 1, sizeof(T), sums_needed_, kTwoPasses<T> ? kCachedElements : 0),
        shifts_(sums_needed_ ? channels_.slices() * all_ : 0),
        sums_(sums_needed_ ? channels_.slices() * all_ : 0),
        coefficients_(all_) {}

  void run() const {
    channels_.run([&](int64_t block, int64_t slice) { reduce(block, slice); },
                  [&](int64_t begin, int64_t end) { finish(begin, end); },
                  [&](int64_t block, int64_t slice) { map(block, slice); },
                  [&](int64_t block, int64_t slice) { map_and_reduce(block, slice); });
  }

 private:
  // ---------------------------------------------------------------------------------------------- sums
  // Whether sums are taken in float64 from the start, about an element.
  bool wide(int64_t slice) const { return kTwoPasses<T> || channels_.count(slice) < kFew; }

  // What FirstMomentSums are taken about.
  void choose_shift(int64_t block, int64_t slice) const {
    S* const shift = shifts_[0] + slice * all_;
    if (kDotSums<T>)
      std::fill(shift + channels_.channel_begin(block), shift + channels_.channel_begin(block + 1), 0);
    else
      channels_.sample(block, slice, x_, shift);
  }
  template <class Sum>
  NORMEXT_NOINLINE void sum(int64_t block, int64_t slice) const {
    const int64_t at = slice * all_;
    channels_.reduce(Sum(), block, slice, {x_}, {shifts_[0] + at}, {sums_[0] + at, sums_[1] + at});
  }
  // About the mean, if float64 is what elements are.
  NORMEXT_NOINLINE void sum_wide(int64_t block, int64_t slice) const {
    const int64_t begin = channels_.channel_begin(block), end = channels_.channel_begin(block + 1);
    const double count = channels_.count(slice);
    S* const shift = shifts_[0] + slice * all_;
    const double* const first = sums_[0] + slice * all_;
    for (int64_t c = begin; c < end; ++c) shift[c] = load_one(x_ + channels_.first_element(c));
    sum<WideMomentSums<T>>(block, slice);
    if (!kTwoPasses<T>) return;
    for (int64_t c = begin; c < end; ++c) shift[c] += first[c] / count;
    sum<WideMomentSums<T>>(block, slice);
  }

  bool all_sound(int64_t block, int64_t slice) const {
    const double count = channels_.count(slice), eps = op_.eps;
    const double *const first = sums_[0] + slice * all_, *const second = sums_[1] + slice * all_;
    int64_t unsound = 0;  // as wide as a double, for vector code
    for (int64_t c = channels_.channel_begin(block); c < channels_.channel_begin(block + 1); ++c)
      unsound |= sound(count, first[c], second[c], eps) ? 0 : 1;
    return unsound == 0;
  }
  // Sums again what was not sound.
  NORMEXT_NOINLINE void make_sound(int64_t block, int64_t slice) const {
    if (all_sound(block, slice)) return;
    if (kDotSums<T>) {
      channels_.sample(block, slice, x_, shifts_[0] + slice * all_);
      sum<MomentSums<T>>(block, slice);
      if (all_sound(block, slice)) return;
    }
    sum_wide(block, slice);
  }

  NORMEXT_NOINLINE void reduce(int64_t block, int64_t slice) const {
    if (wide(slice)) return sum_wide(block, slice);
    choose_shift(block, slice);
    sum<FirstMomentSums<T>>(block, slice);
    make_sound(block, slice);
  }

  // ---------------------------------------------------------------------------------------------- statistics
  // Those of channels [begin, begin + size).
  struct Statistics {
    const int64_t begin, size;
    double mean[kFinishedAtOnce], variance[kFinishedAtOnce];

    Statistics(int64_t begin, int64_t end) : begin(begin), size(end - begin) {}
  };

  // Of all slices together, with the sum of squared deviations in place of the variance. Returns how many elements
  // they are of.
  double merge_slices(Statistics& s) const {
    std::fill_n(s.mean, s.size, 0);
    std::fill_n(s.variance, s.size, 0);
    double count = 0;
    for (int64_t slice = 0; slice < channels_.slices(); ++slice) {
      const double more = channels_.count(slice);
      const int64_t at = slice * all_ + s.begin;
      const S* const about = shifts_[0] + at;
      const double *const first = sums_[0] + at, *const second = sums_[1] + at;
      for (int64_t i = 0; i < s.size; ++i) {
        Moments total{count, s.mean[i], s.variance[i]};
        total += moments_from_sums(more, about[i], first[i], second[i]);
        s.mean[i] = total.mean;
        s.variance[i] = total.m2;
      }
      count += more;
    }
    return count;
  }

  NORMEXT_NOINLINE void finish(int64_t begin, int64_t end) const {
    Statistics s(begin, end);
    if (op_.running_mean) {
      std::copy_n(running_.weight + begin, s.size, s.mean);
      std::copy_n(running_.bias + begin, s.size, s.variance);
    } else if (op_.given) {
      for (int64_t i = 0; i < s.size; ++i) {
        s.mean[i] = op_.given[begin + i];
        s.variance[i] = op_.given[all_ + begin + i] / op_.given[2 * all_];
      }
    } else {
      const double count = merge_slices(s);
      if (op_.found) {
        std::copy_n(s.mean, s.size, op_.found + begin);
        std::copy_n(s.variance, s.size, op_.found + all_ + begin);
        return;
      }
      S* const var = static_cast<S*>(op_.var) + begin;
      for (int64_t i = 0; i < s.size; ++i) s.variance[i] /= count;
      for (int64_t i = 0; i < s.size; ++i) var[i] = static_cast<S>(s.variance[i]);
    }
    choose_coefficients(s);
  }

  void choose_coefficients(const Statistics& s) const {
    const double eps = op_.eps;
    const S *const weight = parameters_.weight + s.begin, *const bias = parameters_.bias + s.begin;
    S *const mean = static_cast<S*>(op_.mean) + s.begin, *const rstd = static_cast<S*>(op_.rstd) + s.begin;
    const auto k = coefficients_.template first<5>(s.begin);
    S *const high = k.at[0], *const scale = k.at[1], *const shift = k.at[2], *const near_shift = k.at[3];
    S* const far = k.at[4];
#pragma GCC ivdep
    for (int64_t i = 0; i < s.size; ++i) {
      const double exact_mean = s.mean[i], exact_rstd = reciprocal_std(s.variance[i], eps);
      high[i] = mean[i] = static_cast<S>(exact_mean);
      rstd[i] = static_cast<S>(exact_rstd);
      const double factor = exact_rstd * weight[i], low = std::isinf(exact_mean) ? 0 : exact_mean - high[i];
      scale[i] = static_cast<S>(factor);
      shift[i] = static_cast<S>(bias[i] - low * factor);
      near_shift[i] = static_cast<S>(bias[i] - exact_mean * factor);
      far[i] = !near_zero(exact_mean, exact_rstd) ? 2 : std::abs(near_shift[i]) >= kNormalShift ? 0 : 1;
    }
  }

  // ---------------------------------------------------------------------------------------------- maps
  bool is_plain() const { return !activates_ && !residual_; }

  // Calls f(map, its coefficients) with the map that a block's channels allow, where it is plain.
  template <class F>
  void with_map(int64_t block, const F& f) const {
    const S* const near[2] = {coefficients_[1], coefficients_[3]};
    const S* const anywhere[3] = {coefficients_[0], coefficients_[1], coefficients_[2]};
    if constexpr (sizeof(T) == 2) {
      const S far = channels_.largest(block, coefficients_[4]);
      if (far == 0) return f(NormalizeNearZero<T, kLooksForSubnormals<T>>(), near);
      if (far == 1) return f(NormalizeNearZero<T, false>(), near);
    }
    f(Normalize<T>(), anywhere);
  }
  void map_and_activate(int64_t block, int64_t slice) const {
    const S* const k[3] = {coefficients_[0], coefficients_[1], coefficients_[2]};
    const Activate<T> activate(op_.activation);
    if (!activates_)
      channels_.map(Normalize<T, Identity, true>(), block, slice, {x_, residual_}, y_, k);
    else if (residual_)
      channels_.map(Normalize<T, Activate<T>, true>{activate}, block, slice, {x_, residual_}, y_, k);
    else
      channels_.map(Normalize<T, Activate<T>>{activate}, block, slice, {x_}, y_, k);
  }
  NORMEXT_NOINLINE void map(int64_t block, int64_t slice) const {
    if (op_.found) return;
    if (!is_plain()) return map_and_activate(block, slice);
    with_map(block, [&](const auto& map, const auto& k) { channels_.map(map, block, slice, {x_}, y_, k); });
  }
  // Sums over the next block go along with the map.
  NORMEXT_NOINLINE void map_and_reduce(int64_t block, int64_t slice) const {
    if (wide(slice) || !is_plain() || op_.found) {
      map(block, slice);
      return reduce(block + 1, slice);
    }
    choose_shift(block + 1, slice);
    const int64_t at = slice * all_;
    with_map(block, [&](const auto& map, const auto& k) {
      channels_.map_and_reduce(map, FirstMomentSums<T>(), block, slice, {x_}, y_, k, {shifts_[0] + at},
                               {sums_[0] + at, sums_[1] + at});
    });
    make_sound(block + 1, slice);
  }

  const BatchNormForward& op_;
  const ChannelParameters<S>& parameters_;
  const ChannelParameters<S>& running_;
  const T *const x_, *const residual_;
  T* const y_;
  const bool activates_, sums_needed_;
  const int64_t all_;  // channels
  const Channels channels_;
  const ChannelArrays<S, 1> shifts_;        // of each slice
  const ChannelArrays<double, 2> sums_;     // of d and d^2, d = x - shift: see MomentSums
  const ChannelArrays<S, 5> coefficients_;  // of Normalize, shift near zero, how far it is
};

}  // namespace normext::cpu::NORMEXT_ISA
