// group_norm.cpp -- GroupNorm on the CPU, and InstanceNorm, which is GroupNorm with a channel to a group: sums per
// group forward and per channel backward, then one affine map per channel. What is computed is the same in every
// layout; groups.h knows how channels_last data and planes are cut and walked.
#include <utility>

#include "cpu/channels/arrays.h"
#include "cpu/channels/groups.h"
#include "cpu/channels/kept.h"
#include "cpu/channels/maps.h"
#include "cpu/kernel.h"
#include "ops/channel_norm.h"

namespace normext::cpu::NORMEXT_ISA {

// ------------------------------------------------------------------------------------------------ forward
template <class T>
class GroupForward {
  using S = Scalar<T>;

 public:
  GroupForward(const GroupNormForward& op, const ChannelParameters<S>& parameters, int threads)
      : op_(op),
        parameters_(parameters),
        in_({static_cast<const T*>(op.input)}),
        groups_(op.shape, op.groups, threads, 1, sizeof(T)),
        channels_(groups_.item_channels()),
        shifts_(groups_.slots() * channels_),
        sums_(groups_.slots() * groups_.partials()),
        coefficients_(groups_.slots() * channels_) {}

  void run() const {
    groups_.run([&](int64_t item, int64_t slot) { choose_shift(item, slot); },
                [&](int64_t item, int64_t slot, int64_t unit) { first_sum(item, slot, unit); },
                [&](int64_t item, int64_t slot, int) { finish(item, slot); },
                [&](int64_t item, int64_t slot, int64_t unit) { map(item, slot, unit); });
  }

 private:
  // Whether sums are taken in float64 from the start, about an element.
  bool wide() const { return kTwoPasses<T> || static_cast<double>(groups_.count()) < kFew; }

  // shift(group) for all channels of each group of an item.
  template <class F>
  void set_shifts(int64_t slot, const F& shift) const {
    for (int64_t group = 0; group < groups_.item_groups(); ++group)
      std::fill_n(shifts_[0] + slot * channels_ + group * groups_.group_channels(), groups_.group_channels(),
                  shift(group));
  }
  S shift_of(int64_t slot, int64_t group) const {
    return shifts_[0][slot * channels_ + group * groups_.group_channels()];
  }
  void shift_to_samples(int64_t item, int64_t slot) const {
    set_shifts(slot, [&](int64_t group) { return groups_.sample(item, group, in_.from[0]); });
  }
  void shift_to_elements(int64_t item, int64_t slot) const {
    set_shifts(slot, [&](int64_t group) { return load_one(in_.from[0] + groups_.first_element(item, group)); });
  }
  void choose_shift(int64_t item, int64_t slot) const {
    if (wide()) return shift_to_elements(item, slot);
    kDotSums<T> ? set_shifts(slot, [](int64_t) { return S{0}; }) : shift_to_samples(item, slot);
  }

  template <class Sum>
  void sum(int64_t item, int64_t slot, int64_t unit) const {
    const auto totals = sums_.template first<2>(slot * groups_.partials());
    groups_.template reduce<true>(Sum(), item, unit, in_, {shifts_[0] + slot * channels_}, totals.at);
  }
  template <class Sum>
  void sum_again(int64_t item, int64_t slot) const {
    groups_.for_units([&](int64_t unit) { sum<Sum>(item, slot, unit); });
    add_units(slot);
  }
  void first_sum(int64_t item, int64_t slot, int64_t unit) const {
    wide() ? sum<WideMomentSums<T>>(item, slot, unit) : sum<FirstMomentSums<T>>(item, slot, unit);
  }

  void add_units(int64_t slot) const {
    for (int array : {0, 1}) groups_.template add_units<true>(sums_[array] + slot * groups_.partials());
  }
  double total(int array, int64_t slot, int64_t group) const {
    return groups_.template group_total<true>(sums_[array] + slot * groups_.partials(), group);
  }
  bool all_sound(int64_t slot) const {
    for (int64_t group = 0; group < groups_.item_groups(); ++group)
      if (!sound<double>(groups_.count(), total(0, slot, group), total(1, slot, group), op_.eps)) return false;
    return true;
  }
  // Sums again what was not sound, and float64 about its mean.
  void make_sound(int64_t item, int64_t slot) const {
    if (wide()) {
      if (!kTwoPasses<T>) return;
      set_shifts(slot, [&](int64_t group) {
        return static_cast<S>(shift_of(slot, group) + total(0, slot, group) / static_cast<double>(groups_.count()));
      });
      return sum_again<WideMomentSums<T>>(item, slot);
    }
    if (all_sound(slot)) return;
    if (kDotSums<T>) {
      shift_to_samples(item, slot);
      sum_again<MomentSums<T>>(item, slot);
      if (all_sound(slot)) return;
    }
    shift_to_elements(item, slot);
    sum_again<WideMomentSums<T>>(item, slot);
  }

  void finish(int64_t item, int64_t slot) const {
    add_units(slot);
    make_sound(item, slot);
    const double count = static_cast<double>(groups_.count());
    const int64_t size = groups_.group_channels();
    for (int64_t group = 0; group < groups_.item_groups(); ++group) {
      const Moments moments =
          moments_from_sums(count, shift_of(slot, group), total(0, slot, group), total(1, slot, group));
      const double rstd = reciprocal_std(moments.variance(), op_.eps);
      const int64_t index = groups_.first_group(item) + group;
      const S high = static_cast<S*>(op_.mean)[index] = static_cast<S>(moments.mean);
      static_cast<S*>(op_.rstd)[index] = static_cast<S>(rstd);
      static_cast<S*>(op_.var)[index] = static_cast<S>(moments.variance());
      const double low = std::isinf(moments.mean) ? 0 : moments.mean - high;
      const int64_t first = groups_.first_channel(item) + group * size, at = slot * channels_ + group * size;
      const S *const weight = parameters_.weight + first, *const bias = parameters_.bias + first;
      S *const highs = coefficients_[0] + at, *const scales = coefficients_[1] + at;
      S* const shifts = coefficients_[2] + at;
#pragma GCC ivdep
      for (int64_t c = 0; c < size; ++c) {
        const double scale = rstd * weight[c];
        highs[c] = high;
        scales[c] = static_cast<S>(scale);
        shifts[c] = static_cast<S>(bias[c] - low * scale);
      }
    }
  }

  void map(int64_t item, int64_t slot, int64_t unit) const {
    const auto k = coefficients_.template first_to_read<3>(slot * channels_);
    T* const y = static_cast<T*>(op_.output);
    if (op_.activation.kind == Activation::Kind::none)
      groups_.map(Normalize<T>(), item, unit, in_, y, k.at);
    else
      groups_.map(Normalize<T, Activate<T>>{Activate<T>(op_.activation)}, item, unit, in_, y, k.at);
  }

  const GroupNormForward& op_;
  const ChannelParameters<S>& parameters_;
  const Inputs<T, 1> in_;
  const Groups groups_;
  const int64_t channels_;  // of an item
  const ChannelArrays<S, 1> shifts_;
  const ChannelArrays<double, 2> sums_;     // of d and d^2, d = x - shift: see MomentSums
  const ChannelArrays<S, 3> coefficients_;  // of Normalize
};

// ------------------------------------------------------------------------------------------------ backward
template <class T>
class GroupBackward {
  using S = Scalar<T>;

 public:
  GroupBackward(const GroupNormBackward& op, const ChannelParameters<S>& parameters, int threads)
      : op_(op),
        parameters_(parameters),
        in_({static_cast<const T*>(op.grad_output), static_cast<const T*>(op.input)}),
        groups_(op.shape, op.groups, threads, 2, sizeof(T)),
        kept_elements_(keeps() ? groups_.kept_elements(kKept / sizeof(S)) : 0),
        kept_(groups_.slots() * kept_elements_),
        channels_(groups_.item_channels()),
        sums_(groups_.slots() * groups_.partials()),
        coefficients_(groups_.slots() * channels_),
        near_(groups_.slots() * channels_),
        totals_(groups_.parts() * op.shape.channels) {
    for (int array : {0, 1}) std::fill_n(totals_[array], groups_.parts() * op.shape.channels, 0);
  }

  void run() const {
    groups_.run([&](int64_t item, int64_t slot) { choose_coefficients(item, slot); },
                [&](int64_t item, int64_t slot, int64_t unit) { sum(item, slot, unit); },
                [&](int64_t item, int64_t slot, int part) { finish(item, slot, part); },
                [&](int64_t item, int64_t slot, int64_t unit) {
                  if (op_.grad_input) map(item, slot, unit);
                });
  }

  // Gradients of the parameters.
  template <class P>
  void store_totals(Type<P>) const {
    for (int array : {0, 1}) {
      void* const gradient = array == 0 ? op_.grad_weight : op_.grad_bias;
      if (!gradient) continue;
      const int64_t channels = op_.shape.channels;
      for_vectors(0, channels, [&](int64_t c, int64_t count) NORMEXT_INLINE {
        Doubles total{};
        for (int64_t part = 0; part < groups_.parts(); ++part)
          total += load(totals_[array] + part * channels + c, count);
        Vector<P> rounded;
        narrow(total, rounded);
        store(static_cast<P*>(gradient) + c, rounded, count);
      });
    }
  }

 private:
  void choose_coefficients(int64_t item, int64_t slot) const {
    const int64_t size = groups_.group_channels(), first = groups_.first_channel(item);
    const auto k = coefficients_.template first<4>(slot * channels_);
    for (int64_t group = 0; group < groups_.item_groups(); ++group) {
      std::fill_n(k.at[0] + group * size, size, mean(item, group));
      std::fill_n(k.at[1] + group * size, size, rstd(item, group));
    }
    std::copy_n(parameters_.weight + first, channels_, k.at[2]);
    std::copy_n(parameters_.bias + first, channels_, k.at[3]);
  }
  bool activates() const { return op_.activation.kind != Activation::Kind::none; }
  // Only SiLU's gradient is dear enough to compute: beyond the caches, keeping that of the others loses.
  bool keeps() const { return op_.activation.kind == Activation::Kind::silu && op_.grad_input; }
  S* kept(int64_t slot) const { return kept_elements_ ? kept_ + slot * kept_elements_ : nullptr; }
  S mean(int64_t item, int64_t group) const {
    return static_cast<const S*>(op_.mean)[groups_.first_group(item) + group];
  }
  S rstd(int64_t item, int64_t group) const {
    return static_cast<const S*>(op_.rstd)[groups_.first_group(item) + group];
  }

  void sum(int64_t item, int64_t slot, int64_t unit) const {
    if (activates())
      sum_by(GradientSumsThrough<T>(Activate<T>(op_.activation)), item, slot, unit, KeepingInputs<T>(in_, kept(slot)));
    else
      sum_by(GradientSums<T>(), item, slot, unit, in_);
  }
  template <class Sum, class Inputs>
  void sum_by(const Sum& none, int64_t item, int64_t slot, int64_t unit, const Inputs& in) const {
    const auto totals = sums_.template first<3>(slot * groups_.partials());
    const auto k = coefficients_.template first_to_read<Sum::kCoefficients>(slot * channels_);
    groups_.template reduce<false>(none, item, unit, in, k.at, totals.at);
  }

  // Adds an item's share of the parameters' gradients to those of a part, and finds the coefficients of its map.
  void finish(int64_t item, int64_t slot, int part) const {
    const double count = static_cast<double>(groups_.count());
    const int64_t size = groups_.group_channels();
    const auto sums = sums_.template first<3>(slot * groups_.partials());
    for (double* partials : sums.at) groups_.template add_units<false>(partials);
    bool near = true;
    for (int64_t group = 0; group < groups_.item_groups(); ++group) {
      // How far the mean is off for being rounded, in units of the deviation.
      const double offset = groups_.template group_total<false>(sums.at[2], group) / count;
      const auto [h, h_xhat] = add_to_totals(item, group, part, sums.at[0], sums.at[1], offset);
      const double slope = -h_xhat / count, level = (offset * h_xhat - h) / count;
      const double m = mean(item, group), r = rstd(item, group), near_slope = slope * r * r;
      const int64_t at = slot * channels_ + group * size;
      const S* const weight = parameters_.weight + groups_.first_channel(item) + group * size;
      std::fill_n(coefficients_[4] + at, size, static_cast<S>(slope));
      std::fill_n(coefficients_[5] + at, size, static_cast<S>(level));
      for (int64_t c = 0; c < size; ++c) near_[0][at + c] = static_cast<S>(r * weight[c]);
      std::fill_n(near_[1] + at, size, static_cast<S>(near_slope));
      std::fill_n(near_[2] + at, size, static_cast<S>(level * r - m * near_slope));
      near = near && may_multiply_out(m, r, near_slope);
    }
    near_[3][slot * channels_] = near ? 1 : 0;
  }

  // Adds the channels' sums of g and g * xhat, from which `offset` comes off, to a part's. Returns a group's sums of h
  // and h * xhat, for h = g * weight.
  std::pair<double, double> add_to_totals(int64_t item, int64_t group, int part, const double* g, const double* g_xhat,
                                          double offset) const {
    const int64_t size = groups_.group_channels(), first = groups_.first_channel(item) + group * size;
    double* const totals[] = {totals_[0] + part * op_.shape.channels + first,
                              totals_[1] + part * op_.shape.channels + first};
    const Doubles off = broadcast(offset);
    Doubles h{}, h_xhat{};
    for_vectors_once(0, size, [&](int64_t c, int64_t n) {
      const Doubles sum = load(g + group * size + c, n), product = load(g_xhat + group * size + c, n) - off * sum;
      const Doubles weight = widen(load(parameters_.weight + first + c, n));
      store(totals[0] + c, load(totals[0] + c, n) + product, n);
      store(totals[1] + c, load(totals[1] + c, n) + sum, n);
      h += sum * weight;
      h_xhat += product * weight;
    });
    return {cpu::NORMEXT_ISA::sum(h), cpu::NORMEXT_ISA::sum(h_xhat)};
  }

  void map(int64_t item, int64_t slot, int64_t unit) const {
    if (kept_elements_)  // the same to the bit as what computes g again: whether it is kept depends on the batch
      map_by(WeightedGradient<T>(), item, slot, unit, coefficients_, KeptInputs<T>{kept(slot), in_.from[1]});
    else if (activates())
      map_by(WeightedGradient<T, Activate<T>>{Activate<T>(op_.activation)}, item, slot, unit, coefficients_, in_);
    else if (near_[3][slot * channels_] == 1)
      map_by(GradientNearZero<T>(), item, slot, unit, near_, in_);
    else
      map_by(WeightedGradient<T>(), item, slot, unit, coefficients_, in_);
  }
  template <class Map, int kArrays, class Inputs>
  void map_by(const Map& map, int64_t item, int64_t slot, int64_t unit, const ChannelArrays<S, kArrays>& coefficients,
              const Inputs& in) const {
    const auto k = coefficients.template first_to_read<Map::kCoefficients>(slot * channels_);
    groups_.map(map, item, unit, in, static_cast<T*>(op_.grad_input), k.at);
  }

  const GroupNormBackward& op_;
  const ChannelParameters<S>& parameters_;
  const Inputs<T, 2> in_;
  const Groups groups_;
  const int64_t kept_elements_;             // of an item
  const Scratch<S> kept_;                   // g, where an item is kept
  const int64_t channels_;                  // of an item
  const ChannelArrays<double, 3> sums_;     // of GradientSums, or GradientSumsThrough
  const ChannelArrays<S, 6> coefficients_;  // of WeightedGradient
  const ChannelArrays<S, 4> near_;          // of GradientNearZero; 1 at an item's first channel if it may be taken
  const ChannelArrays<double, 2> totals_;   // of g * xhat and g, for each part and channel
};

template <>
void run(const GroupNormForward& op, int threads) {
  with_types(op.dtype, op.param_dtype, [&]<class T, class P>(Type<T>, Type<P> p) {
    const ChannelParameters<Scalar<T>> parameters(p, op.weight, op.bias, op.shape.channels);
    GroupForward<T>(op, parameters, threads).run();
  });
}
template <>
void run(const GroupNormBackward& op, int threads) {
  with_types(op.dtype, op.param_dtype, [&]<class T, class P>(Type<T>, Type<P> p) {
    const ChannelParameters<Scalar<T>> parameters(p, op.weight, op.bias, op.shape.channels);
    const GroupBackward<T> backward(op, parameters, threads);
    backward.run();
    backward.store_totals(p);
  });
}

}  // namespace normext::cpu::NORMEXT_ISA

template void normext::cpu::run_on<normext::cpu::kIsa>(const GroupNormForward&, int);
template void normext::cpu::run_on<normext::cpu::kIsa>(const GroupNormBackward&, int);
