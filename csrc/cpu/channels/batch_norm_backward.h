// batch_norm_backward.h -- the backward of BatchNorm alone on the CPU: sums per channel, then one affine map per
// channel. Phases are not inlined: the loops over blocks have several calls of each.
#pragma once
#include "cpu/channels/arrays.h"
#include "cpu/channels/channels.h"
#include "cpu/channels/maps.h"
#include "ops/channel_norm.h"

namespace normext::cpu::NORMEXT_ISA {

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

template <class T>
class BatchBackward {
  using S = Scalar<T>;
  using First = std::conditional_t<kDotSums<T>, DotProductSums<false>, GradientSums<T>>;

 public:
  // The gradients of weight and bias go to two arrays, so that none of this depends on their dtype.
  BatchBackward(const BatchNormBackward& op, const ChannelParameters<S>& parameters,
                const ChannelArrays<S, 2>& gradients, int threads)
      : op_(op),
        parameters_(parameters),
        gradients_(gradients),
        dy_(static_cast<const T*>(op.grad_output)),
        x_(static_cast<const T*>(op.input)),
        dx_(static_cast<T*>(op.grad_input)),
        mean_(static_cast<const S*>(op.mean)),
        rstd_(static_cast<const S*>(op.rstd)),
        sums_needed_(!op.given && (op.grad_weight || op.grad_bias || op.training)),
        all_(op.shape.channels),
        count_(op.moments ? op.moments[2 * all_] : static_cast<double>(op.shape.batch * op.shape.plane)),
        channels_(op.shape, threads, 2, sizeof(T), sums_needed_),
        sums_(sums_needed_ || op.given ? channels_.slices() * all_ : 0),
        coefficients_(all_) {}

  void run() const {
    channels_.run([&](int64_t block, int64_t slice) { reduce(block, slice); },
                  [&](int64_t begin, int64_t end) { finish(begin, end); },
                  [&](int64_t block, int64_t slice) { map(block, slice); },
                  [&](int64_t block, int64_t slice) { map_and_reduce(block, slice); });
  }

 private:
  // ---------------------------------------------------------------------------------------------- sums
  // Whether sums by dot products may do: the mean is near zero in units of the deviation, as in sound(). (In evaluation
  // the deviation is a given number, and says nothing of x.)
  bool may_dot(int64_t block) const {
    const S *const mean = mean_, *const rstd = rstd_;
    int64_t unsound = 0;  // as wide as a double, for vector code
    for (int64_t c = channels_.channel_begin(block); c < channels_.channel_begin(block + 1); ++c)
      unsound |= (std::abs(mean[c] * rstd[c]) <= 2) & (rstd[c] < 0x1p80f) ? 0 : 1;
    return kDotSums<T> && op_.training && unsound == 0;
  }
  // Makes sums of g * xhat out of those of g * x, and says whether these were sound. They make up for no rounding of
  // the mean, which near zero is below theirs.
  bool settle(int64_t block, int64_t slice) const {
    const auto totals = sums_.template first<3>(slice * all_);
    double *const g = totals.at[0], *const g_xhat = totals.at[1], *const xhat = totals.at[2];
    const S *const mean = mean_, *const rstd = rstd_;
    const double n = channels_.count(slice);
    int64_t unsound = 0;
    for (int64_t c = channels_.channel_begin(block); c < channels_.channel_begin(block + 1); ++c) {
      unsound |= settle_products(n, mean[c], rstd[c], g[c], g_xhat[c]) ? 0 : 1;
      xhat[c] = 0;
    }
    return unsound == 0;
  }
  template <class Sum>
  NORMEXT_NOINLINE void sum(int64_t block, int64_t slice) const {
    const auto totals = sums_.template first<Sum::kSums>(slice * all_);
    channels_.reduce(Sum(), block, slice, {dy_, x_}, {mean_, rstd_}, totals.at);
  }
  NORMEXT_NOINLINE void reduce(int64_t block, int64_t slice) const {
    if (may_dot(block)) {
      sum<First>(block, slice);
      if (settle(block, slice)) return;
    }
    sum<GradientSums<T>>(block, slice);
  }

  // ---------------------------------------------------------------------------------------------- gradients per
  // channel Those of the parameters, and the coefficients of the map.
  NORMEXT_NOINLINE void finish(int64_t begin, int64_t end) const {
    for (int64_t c = begin; c < end; ++c)
      coefficients_[0][c] = static_cast<S>(static_cast<double>(rstd_[c]) * static_cast<double>(parameters_.weight[c]));
    if (!sums_needed_ && !op_.given) return;
    if (sums_needed_) add_slices(begin, end);
    if (op_.found) return hand_out(begin, end);
    if (op_.given) take_in(begin, end);
    // In evaluation the mean is a given number, not the data's: nothing to correct.
    if (!op_.training) std::fill(sums_[2] + begin, sums_[2] + end, 0);
    choose_coefficients(begin, end);
  }

  // To the sums of the first slice, which are those of all then.
  void add_slices(int64_t begin, int64_t end) const {
    for (int64_t slice = 1; slice < channels_.slices(); ++slice) {
      for (int array : {0, 1, 2}) {
        double* const total = sums_[array];
        for (int64_t c = begin; c < end; ++c) total[c] += total[slice * all_ + c];
      }
    }
  }

  // In a batch in parts what the mean is off by is known, in units of the deviation: each part corrects its sums by it
  // before all are added up, and again after.
  double offset_of(int64_t c) const { return (op_.moments[c] - mean_[c]) * rstd_[c]; }
  void hand_out(int64_t begin, int64_t end) const {
    for (int64_t c = begin; c < end; ++c) {
      op_.found[c] = sums_[0][c];
      op_.found[all_ + c] = sums_[1][c] - offset_of(c) * sums_[0][c];
    }
  }
  void take_in(int64_t begin, int64_t end) const {
    for (int64_t c = begin; c < end; ++c) {
      sums_[0][c] = op_.given[c];
      sums_[1][c] = op_.given[all_ + c] + offset_of(c) * op_.given[c];
      sums_[2][c] = offset_of(c) * count_;
    }
  }

  void choose_coefficients(int64_t begin, int64_t end) const {
    const int64_t size = end - begin;
    const S *const mean = mean_ + begin, *const rstd = rstd_ + begin;
    const auto totals = sums_.template first_to_read<3>(begin);
    const auto parameters = gradients_.template first<2>(begin);
    const auto k = coefficients_.template first<6>(begin);
    const double *const g = totals.at[0], *const g_xhat = totals.at[1], *const xhat = totals.at[2];
    S *const dw = parameters.at[0], *const db = parameters.at[1];
    const S* const scale = k.at[0];
    S *const slope = k.at[1], *const level = k.at[2], *const near_slope = k.at[3], *const near_level = k.at[4];
    S* const far = k.at[5];
    const double n = count_;  // a copy: a member may change with every store
#pragma GCC ivdep
    for (int64_t i = 0; i < size; ++i) {
      const Gradients total{g[i], g_xhat[i], xhat[i]};
      const double offset = total.offset(n), corrected = total.corrected(n);
      dw[i] = static_cast<S>(corrected);
      db[i] = static_cast<S>(total.g);
      const double exact_slope = -corrected / n, exact_level = (offset * corrected - total.g) / n;
      slope[i] = static_cast<S>(exact_slope);
      level[i] = static_cast<S>(exact_level);
      const double near = exact_slope * rstd[i] * scale[i];
      near_slope[i] = static_cast<S>(near);
      near_level[i] = static_cast<S>(exact_level * scale[i] - mean[i] * near);
      far[i] = may_multiply_out(mean[i], rstd[i], near) ? 0 : 1;
    }
  }

  // ---------------------------------------------------------------------------------------------- maps
  // Calls f(map, its coefficients) with the map that a block's channels allow in training.
  template <class F>
  void with_map(int64_t block, const F& f) const {
    const S* const near[3] = {coefficients_[0], coefficients_[3], coefficients_[4]};
    const S* const anywhere[5] = {coefficients_[0], mean_, rstd_, coefficients_[1], coefficients_[2]};
    channels_.largest(block, coefficients_[5]) == 0 ? f(GradientNearZero<T>(), near)
                                                    : f(TrainingGradient<T>(), anywhere);
  }
  NORMEXT_NOINLINE void map(int64_t block, int64_t slice) const {
    if (!dx_) return;
    if (!op_.training)
      channels_.map(EvaluationGradient<T>(), block, slice, {dy_}, dx_, {coefficients_[0]});
    else
      with_map(block, [&](const auto& map, const auto& k) { channels_.map(map, block, slice, {dy_, x_}, dx_, k); });
  }
  // Sums over the next block go along with the map.
  NORMEXT_NOINLINE void map_and_reduce(int64_t block, int64_t slice) const {
    if (!dx_ || !op_.training || (kDotSums<T> && !may_dot(block + 1))) {
      map(block, slice);
      return reduce(block + 1, slice);
    }
    const auto totals = sums_.template first<First::kSums>(slice * all_);
    with_map(block, [&](const auto& map, const auto& k) {
      channels_.map_and_reduce(map, First(), block, slice, {dy_, x_}, dx_, k, {mean_, rstd_}, totals.at);
    });
    if (kDotSums<T> && !settle(block + 1, slice)) sum<GradientSums<T>>(block + 1, slice);
  }

  const BatchNormBackward& op_;
  const ChannelParameters<S>& parameters_;
  const ChannelArrays<S, 2>& gradients_;
  const T *const dy_, *const x_;
  T* const dx_;
  const S *const mean_, *const rstd_;
  const bool sums_needed_;
  const int64_t all_;   // channels
  const double count_;  // elements of each, in all parts of a batch in parts
  const Channels channels_;
  const ChannelArrays<double, 3> sums_;     // of GradientSums
  const ChannelArrays<S, 6> coefficients_;  // scale, slope, level; slope and level near zero, whether it is far
};

}  // namespace normext::cpu::NORMEXT_ISA
