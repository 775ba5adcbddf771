// groups.h -- how the samples of GroupNorm's data are cut into work, and how sums and maps go over a piece of it.
//
// Planes of two vectors or more are contiguous runs, and so is a group of them (planes.h): an item is one group of one
// sample. Everything else is a matrix that is walked by columns (columns.h): channels_last data, and shorter planes, of
// which a sample is one row with a channel every `plane` columns. There an item is a sample with all of its groups.
//
// An item is cut into units by its own shape alone, and sums of units are added up in order, so that a sample's bits
// depend on neither its batch nor the number of threads.
#pragma once
#include <algorithm>

#include "cpu/cache.h"
#include "cpu/channels/columns.h"
#include "cpu/channels/planes.h"
#include "cpu/elements/parallel.h"
#include "ops/channel_norm.h"

namespace normext::cpu::NORMEXT_ISA {

constexpr int64_t kUnit = 32768;   // elements; units are no shorter than that, if they can
constexpr int64_t kUnitRows = 32;  // nor have fewer rows, beside which a unit's tables of columns would count

class Groups {
 public:
  // The op reads `inputs` tensors and writes one, of elements of so many bytes.
  Groups(const ChannelNormShape& shape, int64_t groups, int threads, int64_t inputs, int64_t element_bytes)
      : by_planes_(!shape.channels_last && shape.plane >= 2 * kLanes),
        channels_(shape.channels),
        plane_(shape.plane),
        group_channels_(shape.channels / groups),
        items_(by_planes_ ? shape.batch * groups : shape.batch),
        item_groups_(by_planes_ ? 1 : groups) {
    const int64_t total = shape.batch * shape.channels * shape.plane, bytes = (inputs + 1) * total * element_bytes;
    threads_ = threads_for(total, threads);
    stream_ = should_stream(bytes, threads_, true);
    ask_ahead_ = should_ask_ahead(bytes);
    if (by_planes_) {
      pieces_ = (plane_ + kUnit - 1) / kUnit;
      unit_channels_ = std::clamp<int64_t>(kUnit / plane_, 1, group_channels_);
      units_ = pieces_ > 1 ? group_channels_ * pieces_ : (group_channels_ + unit_channels_ - 1) / unit_channels_;
    } else {
      channel_columns_ = shape.channels_last ? 1 : plane_;
      width_ = channels_ * channel_columns_;
      rows_ = channels_ * plane_ / width_;
      units_ = std::clamp<int64_t>(width_ * rows_ / kUnit, 1, std::max<int64_t>(rows_ / kUnitRows, 1));
      block_channels_ = std::min(channels_, columns_at_once() / channel_columns_);
    }
    const bool balanced = items_ >= 4 * threads_ || items_ % threads_ == 0;
    whole_items_ = units_ == 1 || balanced;
    slots_ = whole_items_ ? threads_ : items_;
  }

  // The groups and channels of an item, and which of all they begin with. `count`: elements of a group.
  int64_t item_groups() const { return item_groups_; }
  int64_t item_channels() const { return item_groups_ * group_channels_; }
  int64_t group_channels() const { return group_channels_; }
  int64_t first_group(int64_t item) const { return item * item_groups_; }
  int64_t first_channel(int64_t item) const { return item * item_groups_ * group_channels_ % channels_; }
  int64_t count() const { return group_channels_ * plane_; }
  // An item's elements, if one thread sums and maps it whole and they are no more than `most`; 0 otherwise.
  int64_t kept_elements(int64_t most) const {
    const int64_t elements = item_groups_ * count();
    return whole_items_ && elements <= most ? elements : 0;
  }
  // Where a group of an item begins, or its first row does.
  int64_t first_element(int64_t item, int64_t group) const {
    return item * item_groups_ * count() + group * group_channels_ * (by_planes_ ? plane_ : channel_columns_);
  }

  // Working memory is for a number of slots: as many as threads, or items. An item has so many partial sums.
  int64_t slots() const { return slots_; }
  int parts() const { return threads_; }
  int64_t partials() const { return by_planes_ ? group_channels_ * pieces_ : channels_ * units_; }

  // begin(item, slot); then sum(item, slot, unit) for all units; then finish(item, slot, part), with a number of its
  // own for each thread; then map(item, slot, unit) for all units.
  template <class Begin, class Sum, class Finish, class Map>
  void run(const Begin& begin, const Sum& sum, const Finish& finish, const Map& map) const {
    if (whole_items_) {
      parallel_for(items_, threads_, [&](int64_t item, int64_t item_end, int part) {
        for (; item < item_end; ++item) {
          begin(item, part);
          for (int64_t unit = 0; unit < units_; ++unit) sum(item, part, unit);
          finish(item, part, part);
          for (int64_t unit = units_; unit-- > 0;) map(item, part, unit);  // what was summed last is in cache
        }
        if (stream_) end_of_stream();
      });
      return;
    }
    parallel_for(items_, threads_, [&](int64_t item, int64_t item_end, int) {
      for (; item < item_end; ++item) begin(item, item);
    });
    parallel_for(items_ * units_, threads_, [&](int64_t i, int64_t end, int) {
      for (; i < end; ++i) sum(i / units_, i / units_, i % units_);
    });
    for (int64_t item = 0; item < items_; ++item) finish(item, item, 0);
    parallel_for(items_ * units_, threads_, [&](int64_t first, int64_t i, int) {
      while (i-- > first) map(i / units_, i / units_, i % units_);
      if (stream_) end_of_stream();
    });
  }
  // Whether an item's sums must be taken once more from the same data, in the same units.
  template <class F>
  void for_units(const F& f) const {
    for (int64_t unit = 0; unit < units_; ++unit) f(unit);
  }

  // A value near the mean of a group, from a few of its elements.
  template <class T>
  Scalar<T> sample(int64_t item, int64_t group, const T* x) const {
    constexpr int64_t kSamples = 4;
    const T* const from = x + first_element(item, group);
    Doubles total{};
    int64_t samples = kSamples, length = kLanes;
    if (by_planes_) {
      for (int64_t i = 0; i < samples; ++i) total += widen(load(from + (count() - kLanes) * i / (samples - 1)));
    } else {
      samples = std::min(rows_, kSamples);
      length = group_channels_ * channel_columns_;
      for (int64_t i = 0; i < samples; ++i)
        for_vectors_once(0, length, [&](int64_t at, int64_t n) NORMEXT_INLINE {
          total += widen(load(from + rows_ * i / samples * width_ + at, n));
        });
    }
    return static_cast<Scalar<T>>(sum(total) / static_cast<double>(samples * length));
  }

  // Sum (sums.h) over a unit, added to copies of `none`, a sum of nothing: coefficients are those of an item's
  // channels, totals its partial sums. kWhole: a group has the same coefficients throughout, and only its total
  // matters.
  template <bool kWhole, class Sum, class Inputs, class S>
  void reduce(const Sum& none, int64_t item, int64_t unit, const Inputs& in,
              const S* const (&coefficients)[Sum::kCoefficients], double* const (&totals)[Sum::kSums]) const {
    const int64_t first = first_element(item, 0);
    if (!by_planes_) return reduce_matrix(none, unit, in.after(first), coefficients, totals);
    if (ask_ahead_)
      reduce_planes<kWhole>(none, unit, in.template after<kAskAhead<typename Inputs::Element>>(first), coefficients,
                            totals);
    else
      reduce_planes<kWhole>(none, unit, in.after(first), coefficients, totals);
  }

  // Adds up an item's partial sums over its units, in place: a channel's sum comes to stand at its own place. (kWhole
  // by planes: they stay as they are, the group's.)
  template <bool kWhole>
  void add_units(double* partials) const {
    if (!by_planes_) {
      for (int64_t unit = 1; unit < units_; ++unit)
        for (int64_t c = 0; c < channels_; ++c) partials[c] += partials[unit * channels_ + c];
    } else if (!kWhole && pieces_ > 1) {
      for (int64_t c = 0; c < group_channels_; ++c) partials[c] = sum_of(partials + c * pieces_, pieces_);
    }
  }
  // A group's sum of what add_units() has left.
  template <bool kWhole>
  double group_total(const double* sums, int64_t group) const {
    if (kWhole && by_planes_) return sum_of(sums, units_);
    return sum_of(sums + group * group_channels_, group_channels_);
  }

  // out = map.apply(in, coefficients) over a unit.
  template <class Map, class Inputs, class T>
  void map(const Map& map, int64_t item, int64_t unit, const Inputs& in, T* out,
           const Scalar<T>* const (&coefficients)[Map::kCoefficients]) const {
    const int64_t first = first_element(item, 0), ahead = stream_ ? kAskAhead<T> : 0;
    const auto inputs = in.after(first);
    with_streaming<Map, T>(stream_, [&](auto streams) {
      if (by_planes_) return map_planes(map, inputs, out + first, planes(unit), coefficients, streams, ahead, NoSums{});
      for_blocks(unit, [&](int64_t channel, int64_t end, const ColumnBlock& block) {
        ColumnTable<Scalar<T>> k[Map::kCoefficients];
        expand(channel, end, coefficients, k);
        map_columns(map, inputs, out + first, block, k, streams, ahead);
      });
    });
  }

 private:
  // The unit's planes, in data that begins with the item's group.
  PlaneBlock planes(int64_t unit) const {
    if (pieces_ > 1) {
      const int64_t channel = unit / pieces_, piece = unit % pieces_;
      return {group_channels_, plane_, pieces_, piece, piece + 1, channel, channel + 1};
    }
    const int64_t channel = unit * unit_channels_;
    return {group_channels_, plane_, 1, 0, 1, channel, std::min(group_channels_, channel + unit_channels_)};
  }

  // in: from the item's first element on.
  template <bool kWhole, class Sum, class Inputs, class S>
  void reduce_planes(const Sum& none, int64_t unit, const Inputs& in,
                     const S* const (&coefficients)[Sum::kCoefficients], double* const (&totals)[Sum::kSums]) const {
    const PlaneBlock block = planes(unit);
    const auto add = [&](int64_t channel, int64_t begin, int64_t end, int64_t to) {
      S k[Sum::kCoefficients];
      for (int i = 0; i < Sum::kCoefficients; ++i) k[i] = Sum::kDot ? 0 : coefficients[i][channel];
      Doubles sums[Sum::kSums] = {};
      RunSums<Sum, S, Inputs>(in, begin, end, k, sums, none).finish();
      for (int i = 0; i < Sum::kSums; ++i) totals[i][to] = sum(sums[i]);
    };
    if (kWhole && pieces_ == 1) return add(0, block.channel * plane_, block.channel_end * plane_, unit);
    if constexpr (!kWhole && std::is_same_v<typename Sum::Part, Floats>)
      if (plane_ <= kShort * kLanes && group_channels_ >= kLanes / 2)
        return reduce_short_planes(none, block, in, coefficients, totals);
    block.for_runs([&](int64_t channel, int64_t begin, int64_t end, int64_t) {
      add(channel, begin, end, channel * pieces_ + block.unit % pieces_);
    });
  }

  // Planes of a short sum each: as many of them as a vector has lanes have their lanes summed together, in about as
  // many instructions as the sums of four or five, one by one, take.
  template <class Sum, class Inputs, class S>
  void reduce_short_planes(const Sum& none, const PlaneBlock& block, const Inputs& in,
                           const S* const (&coefficients)[Sum::kCoefficients],
                           double* const (&totals)[Sum::kSums]) const {
    for (int64_t first = block.channel; first < block.channel_end; first += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, block.channel_end - first);
      Floats lanes[Sum::kSums][kLanes];
      for (int j = 0; j < Sum::kSums; ++j) std::fill(lanes[j] + count, lanes[j] + kLanes, Floats{});
      for (int64_t i = 0; i < count; ++i) {
        const int64_t channel = first + i, begin = channel * plane_;
        Floats k[Sum::kCoefficients];
        for (int j = 0; j < Sum::kCoefficients; ++j) k[j] = broadcast(coefficients[j][channel]);
        const Sum sum = short_sum<Sum>(begin, begin, begin + plane_, in, k, none);
        for (int j = 0; j < Sum::kSums; ++j) lanes[j][i] = sum.sums[j];
      }
      for (int j = 0; j < Sum::kSums; ++j) store(totals[j] + first, widen(sum_each(lanes[j])), count);
    }
  }

  int64_t first_row(int64_t unit) const { return rows_ * unit / units_; }

  // Calls f(first channel, last channel, columns) for the blocks of channels of a unit.
  template <class F>
  void for_blocks(int64_t unit, const F& f) const {
    for (int64_t channel = 0; channel < channels_; channel += block_channels_) {
      const int64_t end = std::min(channels_, channel + block_channels_);
      f(channel, end,
        ColumnBlock{width_, width_ * rows_, first_row(unit), first_row(unit + 1), channel * channel_columns_,
                    end * channel_columns_});
    }
  }

  template <class Sum, class Inputs, class S>
  void reduce_matrix(const Sum& none, int64_t unit, const Inputs& in,
                     const S* const (&coefficients)[Sum::kCoefficients], double* const (&totals)[Sum::kSums]) const {
    for_blocks(unit, [&](int64_t channel, int64_t end, const ColumnBlock& block) {
      ColumnTable<S> k[Sum::kCoefficients];
      ColumnTable<double> sums[Sum::kSums];
      if constexpr (!Sum::kDot) expand(channel, end, coefficients, k);
      for (auto& table : sums) std::fill_n(table.at, block.size() + table.kRoom, 0);
      ColumnSums<Sum, Inputs>(none, in, block, k, sums).add_all();
      for (int i = 0; i < Sum::kSums; ++i)
        for (int64_t c = channel; c < end; ++c)
          totals[i][unit * channels_ + c] = sum_of(sums[i].at + (c - channel) * channel_columns_, channel_columns_);
    });
  }

  // From channels to columns, and the first of these once more: see map_columns.
  template <class Number, int kTables>
  void expand(int64_t channel, int64_t end, const Number* const (&coefficients)[kTables],
              ColumnTable<Number> (&tables)[kTables]) const {
    for (int i = 0; i < kTables; ++i) {
      Number* to = tables[i].at;
      if (channel_columns_ == 1)
        to = std::copy(coefficients[i] + channel, coefficients[i] + end, to);
      else
        for (int64_t c = channel; c < end; ++c) to = std::fill_n(to, channel_columns_, coefficients[i][c]);
      const Number* const stop = to + kLanes;
      for (const Number* from = tables[i].at; to < stop;) *to++ = *from++;
    }
  }

  bool by_planes_;
  int64_t channels_, plane_, group_channels_, items_, item_groups_;
  int threads_;
  bool stream_, ask_ahead_, whole_items_;
  int64_t units_, slots_;
  int64_t pieces_ = 1, unit_channels_ = 1;                                   // by planes
  int64_t channel_columns_ = 1, width_ = 1, rows_ = 1, block_channels_ = 1;  // by columns
};

}  // namespace normext::cpu::NORMEXT_ISA
