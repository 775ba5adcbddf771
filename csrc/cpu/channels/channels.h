// channels.h -- how [batch, channels, plane] data, in either layout, is cut into work: blocks of channels, and slices
// of a block where there are fewer blocks than threads.
//
// Planes of a vector or more are walked one after another (planes.h). Everything else is a matrix walked by columns
// (columns.h): channels_last data; shorter planes, [batch, channels * plane] with a channel every `plane` columns; and
// where that matrix is narrow, as with three channels, several of its rows side by side.
#pragma once
#include <algorithm>

#include "cpu/cache.h"
#include "cpu/channels/columns.h"
#include "cpu/channels/planes.h"
#include "cpu/elements/parallel.h"
#include "ops/channel_norm.h"

namespace normext::cpu::NORMEXT_ISA {

constexpr int64_t kNarrow = 256;        // columns; narrower matrices get several rows side by side
constexpr int64_t kRowsInOrder = 64;    // rows of several blocks, mapped block by block before the next ones
constexpr int64_t kPlanePiece = 16384;  // elements; longer planes can be cut between threads
constexpr int64_t kCachedElements = kCached / 8;
constexpr int64_t kFinishedAtOnce = 128;    // channels
constexpr int64_t kElementsPerFinish = 16;  // as much work as a channel to finish

// Elements; shorter planes are walked as columns. Sums by columns take no sum of lanes, but tables of coefficients and
// totals, which pay for themselves where samples are many and elements, of all inputs together, have few bytes.
inline int64_t shortest_plane(int64_t batch, int64_t bytes, bool sums) {
  if (!sums || batch < 16) return 2 * kLanes;
  return should_take_columns() && bytes <= 4 && batch >= 8 * bytes ? 7 * kLanes : 4 * kLanes;
}

class Channels {
 public:
  // The op reads `inputs` tensors and writes one, of elements of so many bytes; `sums` is whether it sums before it
  // maps. slice_elements, if not 0: no slice of a block should be larger than that.
  Channels(const ChannelNormShape& shape, int threads, int64_t inputs, int64_t element_bytes, bool sums,
           int64_t slice_elements = 0)
      : channels_(shape.channels),
        total_(shape.batch * shape.channels * shape.plane),
        plane_(shape.channels_last ? 1 : shape.plane),
        by_planes_(plane_ >= shortest_plane(shape.batch, inputs * element_bytes, sums)),
        sums_(sums),
        threads_(threads_for(total_, threads)),
        stream_(should_stream((inputs + 1) * total_ * element_bytes, threads_, sums)),
        ask_ahead_(sums ? should_ask_ahead((inputs + 1) * total_ * element_bytes) : stream_) {
    if (by_planes_) {
      pieces_ = (plane_ + kPlanePiece - 1) / kPlanePiece;
      units_ = shape.batch * pieces_;
      // A block's share of all samples should stay in cache from the sums to the map, each a run worth fetching.
      const int64_t run = std::clamp<int64_t>(2 * kCachedElements / shape.batch, 512, 4096);
      const int64_t most = std::clamp<int64_t>(channels_ / (4 * threads_), 1, kBlockChannels);
      block_channels_ = std::clamp<int64_t>(run / plane_, 1, most);
      // Without sums there is nothing to keep: all channels of a sample are mapped in the order of memory.
      if (!sums && units_ >= threads_) block_channels_ = channels_;
    } else {
      width_ = channels_ * plane_;
      const int64_t widest = total_ / (8 * kRowsAtOnce);
      while (width_ < widest && (width_ < kNarrow || (width_ < 2 * kNarrow && width_ % kLanes != 0))) width_ *= 2;
      units_ = (total_ + width_ - 1) / width_;
      block_channels_ = std::min(channels_, columns_at_once() / plane_);
    }
    const auto blocks = [&] { return (channels_ + block_channels_ - 1) / block_channels_; };
    if (blocks() > 1) {  // as many for each thread, all of a size
      const int64_t even = (blocks() + threads_ - 1) / threads_ * threads_;
      block_channels_ = (channels_ + even - 1) / even;
    }
    if (plane_ == 1) block_channels_ = std::min(channels_, (block_channels_ + kLanes - 1) / kLanes * kLanes);
    blocks_ = blocks();
    const bool balanced = blocks_ >= 4 * threads_ || blocks_ % threads_ == 0;
    // A block that is too large for one core's cache, but not for that of all, and worth waking them.
    const int64_t block_bytes = inputs * (total_ / blocks_) * element_bytes, share = block_bytes / threads_;
    together_ = by_planes_ && sums && threads_ > 1 && units_ >= threads_ && share > kCached && share <= 4 * kCached;
    const int64_t wanted = balanced && !together_ ? 1 : threads_;
    const int64_t needed = slice_elements ? total_ / blocks_ / slice_elements + 1 : 1;
    slices_ = std::min(units_, std::max(wanted, needed));
    if (!sums && !by_planes_ && blocks_ > 1) slices_ = std::max(slices_, units_ / kRowsInOrder);
    map_slices_ = slices_;
    if (sums && slices_ > 1 && !together_) {
      const int64_t slice_bytes = inputs * (total_ / (blocks_ * slices_)) * element_bytes;
      map_slices_ *= std::clamp<int64_t>(slice_bytes / kCached, 1, units_ / slices_);
    }
  }

  int64_t slices() const { return slices_; }
  int64_t channel_begin(int64_t block) const { return std::min(channels_, block * block_channels_); }
  // The largest of a number for each channel, none of them negative, of those of a block.
  template <class Number>
  Number largest(int64_t block, const Number* numbers) const {
    Number most = 0;
    for (int64_t channel = channel_begin(block); channel < channel_begin(block + 1); ++channel)
      most = std::max(most, numbers[channel]);
    return most;
  }
  // Elements of a channel in one slice.
  int64_t count(int64_t slice) const {
    if (!by_planes_) return (std::min(total_, unit_begin(slice + 1) * width_) - unit_begin(slice) * width_) / channels_;
    return plane_offset(unit_begin(slice + 1)) - plane_offset(unit_begin(slice));
  }
  int64_t first_element(int64_t channel) const { return channel * plane_; }

  // reduce(block, slice) for all if there is something to sum, then finish(channel, channel_end) for all, few at a
  // time, then map(block, slice) for all, with slices of its own. A block that is not sliced goes through all three
  // while its data is in cache, as does one that all threads share; if they are planes, map_and_reduce(block, slice)
  // maps it and sums the next one.
  template <class Reduce, class Finish, class Map, class MapAndReduce>
  void run(const Reduce& reduce, const Finish& finish, const Map& map, const MapAndReduce& map_and_reduce) const {
    const auto finish_all = [&](int64_t begin, int64_t end, int = 0) {
      for (; begin < end; begin += kFinishedAtOnce) finish(begin, std::min(end, begin + kFinishedAtOnce));
    };
    const auto finish_block = [&](int64_t block) { finish_all(channel_begin(block), channel_begin(block + 1)); };
    if (slices_ == 1) {
      parallel_for(blocks_, threads_, [&](int64_t begin, int64_t end, int) {
        const bool along = sums_ && by_planes_;
        for (int64_t block = begin; block < end; ++block) {
          if (sums_ && (!along || block == begin)) reduce(block, 0);
          finish_block(block);
          if (along && block + 1 < end)
            map_and_reduce(block, 0);
          else
            map(block, 0);
        }
        if (stream_) end_of_stream();
      });
      return;
    }
    // In the order of memory, and a thread has the same ones every time; or from its last ones to its first.
    const auto for_slices = [&](int64_t blocks, int64_t slices, bool backwards, const auto& f) {
      parallel_for(blocks * slices, threads_, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t item = backwards ? begin + (end - 1 - i) : i;
          f(item % blocks, item / blocks);
        }
        if (stream_) end_of_stream();
      });
    };
    if (together_) {
      for_slices(1, slices_, false, [&](int64_t, int64_t slice) { reduce(0, slice); });
      for (int64_t block = 0; block < blocks_; ++block) {
        finish_block(block);
        for_slices(1, slices_, false, [&](int64_t, int64_t slice) {
          block + 1 < blocks_ ? map_and_reduce(block, slice) : map(block, slice);
        });
      }
      return;
    }
    if (sums_) for_slices(blocks_, slices_, false, reduce);
    parallel_for(channels_, threads_for(channels_ * slices_ * kElementsPerFinish, threads_), finish_all);
    // What was summed last is in cache, and is mapped first: in slices small enough for that.
    for_slices(blocks_, map_slices_, sums_, map);
  }

  // A value near the mean of each channel of a block in one slice, from a few of its elements.
  template <class T>
  void sample(int64_t block, int64_t slice, const T* x, Scalar<T>* values) const {
    const int64_t begin = unit_begin(slice), end = unit_begin(slice + 1);
    if (by_planes_ || (plane_ >= kLanes && repeats() == 1)) {  // where a channel has a vector of its own
      const int64_t samples = std::min<int64_t>(end - begin, 2);
      for (int64_t channel = channel_begin(block); channel < channel_begin(block + 1); ++channel) {
        Doubles total{};
        for (int64_t i = 0; i < samples; ++i) {
          const int64_t unit = begin + (end - begin) * i / samples;
          total += widen(load(x + planes(block, unit, unit + 1).run_begin(unit, channel)));
        }
        values[channel] = static_cast<Scalar<T>>(sum(total) / static_cast<double>(samples * kLanes));
      }
      return;
    }
    const int64_t whole = std::min(end, total_ / width_) - begin;  // rows that are not cut short
    if (whole <= 0) return std::fill(values + channel_begin(block), values + channel_begin(block + 1), load_one(x));
    const int64_t own = width_ / channels_, samples = std::min(whole, std::max<int64_t>(2, 8 / own));
    ColumnTable<Scalar<T>> shift[1];
    ColumnTable<double> sums[2];
    clear(block, shift);
    clear(block, sums);
    ColumnBlock rows = columns(block, 0, samples);  // of a matrix with whole / samples rows in each of its own
    rows.width *= whole / samples;
    rows.total = samples * rows.width;
    ColumnSums<WideMomentSums<T>, Inputs<T, 1>>({}, Inputs<T, 1>({x + begin * width_}), rows, shift, sums).add_all();
    collect(block, sums[0], [&](int64_t channel, double total) {
      values[channel] = static_cast<Scalar<T>>(total / static_cast<double>(samples * own));
    });
  }

  // Sums over one slice of a block, added to copies of `none`, a sum of nothing. Coefficients and totals are arrays
  // with an element for each channel of all.
  template <class Sum, class T>
  void reduce(const Sum& none, int64_t block, int64_t slice, const T* const (&in)[Sum::kInputs],
              const Scalar<T>* const (&coefficients)[Sum::kCoefficients], double* const (&totals)[Sum::kSums]) const {
    const int64_t begin = unit_begin(slice), end = unit_begin(slice + 1);
    if (by_planes_) {
      const auto add_all = [&]<int64_t kAhead>() {
        PlaneSums<Sum, kAhead, T> sums(none, in, planes(block, begin, end), coefficients);
        sums.add_all();
        collect(sums, totals);
      };
      ask_ahead_ ? add_all.template operator()<kAskAhead<T>>() : add_all.template operator()<0>();
    } else {
      ColumnTable<Scalar<T>> k[Sum::kCoefficients];
      ColumnTable<double> sums[Sum::kSums];
      if constexpr (!Sum::kDot) expand(block, coefficients, k);
      clear(block, sums);
      using From = Inputs<T, Sum::kInputs>;
      ColumnSums<Sum, From>(none, From(in), columns(block, begin, end), k, sums).add_all();
      for (int i = 0; i < Sum::kSums; ++i)
        collect(block, sums[i], [&, to = totals[i]](int64_t channel, double total) { to[channel] = total; });
    }
  }

  template <class Map, class T>
  void map(const Map& map, int64_t block, int64_t slice, const T* const (&in)[Map::kInputs], T* out,
           const Scalar<T>* const (&coefficients)[Map::kCoefficients]) const {
    const int64_t begin = map_begin(slice), end = map_begin(slice + 1), ahead = ask_ahead_ ? kAskAhead<T> : 0;
    with_streaming<Map, T>(stream_, [&](auto streams) {
      if (by_planes_)
        return map_planes(map, Inputs<T, Map::kInputs>(in), out, planes(block, begin, end), coefficients, streams,
                          ahead, NoSums{});
      ColumnTable<Scalar<T>> k[Map::kCoefficients];
      expand(block, coefficients, k);
      map_columns(map, Inputs<T, Map::kInputs>(in), out, columns(block, begin, end), k, streams, ahead);
    });
  }

  // Both at once: the map of a block that comes to it from its sums, and sums over the next block. See run().
  template <class Map, class Sum, class T>
  void map_and_reduce(const Map& map, const Sum& none, int64_t block, int64_t slice, const T* const (&in)[Map::kInputs],
                      T* out, const Scalar<T>* const (&coefficients)[Map::kCoefficients],
                      const Scalar<T>* const (&sum_coefficients)[Sum::kCoefficients],
                      double* const (&totals)[Sum::kSums]) const {
    static_assert(Map::kInputs == Sum::kInputs);
    const int64_t begin = unit_begin(slice), end = unit_begin(slice + 1);
    const auto both = [&]<int64_t kAhead>(auto streams) {
      PlaneSums<Sum, kAhead, T> sums(none, in, planes(block + 1, begin, end), sum_coefficients);
      const NextSums<PlaneSums<Sum, kAhead, T>> next{sums, block_channels_, block_channels_ * plane_};
      map_planes(map, Inputs<T, Map::kInputs>(in), out, planes(block, begin, end), coefficients, streams, 0, next);
      collect(sums, totals);
    };
    if (stream_)
      with_streaming<Map, T>(true, [&](auto streams) { both.template operator()<kAskAhead<T>>(streams); });
    else if (ask_ahead_)
      both.template operator()<kAskAhead<T>>(std::false_type{});
    else
      both.template operator()<0>(std::false_type{});
  }

 private:
  template <class Sum, int64_t kAhead, class T>
  static void collect(const PlaneSums<Sum, kAhead, T>& sums, double* const (&totals)[Sum::kSums]) {
    for (int64_t channel = sums.block.channel; channel < sums.block.channel_end; ++channel)
      for (int i = 0; i < Sum::kSums; ++i) totals[i][channel] = sum(sums.totals[channel - sums.block.channel][i]);
  }

  int64_t unit_begin(int64_t slice) const { return units_ * slice / slices_; }
  int64_t map_begin(int64_t slice) const { return units_ * slice / map_slices_; }

  // A unit is a plane, or one of the pieces of a long plane: this is where it begins, counted along one channel.
  int64_t plane_offset(int64_t unit) const { return unit / pieces_ * plane_ + plane_ * (unit % pieces_) / pieces_; }

  PlaneBlock planes(int64_t block, int64_t unit, int64_t unit_end) const {
    return {channels_, plane_, pieces_, unit, unit_end, channel_begin(block), channel_begin(block + 1)};
  }

  ColumnBlock columns(int64_t block, int64_t row, int64_t row_end) const {
    const int64_t begin = channel_begin(block) * plane_;
    const int64_t end = blocks_ == 1 ? width_ : channel_begin(block + 1) * plane_;
    return {width_, total_, row, row_end, begin, end};
  }

  template <class Number, int kTables>
  void clear(int64_t block, ColumnTable<Number> (&tables)[kTables]) const {
    for (ColumnTable<Number>& table : tables)
      std::fill_n(table.at, columns(block, 0, 0).size() + table.kRoom, Number{0});
  }

  // How often a block's channels come side by side in its columns.
  int64_t repeats() const { return blocks_ == 1 ? width_ / (channels_ * plane_) : 1; }

  // From columns to channels: f(channel, the sum of its columns).
  template <class F>
  void collect(int64_t block, const ColumnTable<double>& sums, const F& f) const {
    const int64_t begin = channel_begin(block), end = channel_begin(block + 1), count = repeats();
    if (plane_ == 1 && count == 1) {
      for (int64_t channel = begin; channel < end; ++channel) f(channel, sums.at[channel - begin]);
      return;
    }
    for (int64_t channel = begin; channel < end; ++channel) {
      double total = 0;
      for (int64_t i = 0; i < count; ++i)
        total += sum_of(sums.at + i * channels_ * plane_ + (channel - begin) * plane_, plane_);
      f(channel, total);
    }
  }

  // From channels to columns: tables of the coefficients of a block's columns, and of the first ones once more, see
  // map_columns. (Not inlined: every map calls it.)
  template <class Number, int kTables>
  NORMEXT_NOINLINE void expand(int64_t block, const Number* const (&coefficients)[kTables],
                               ColumnTable<Number> (&tables)[kTables]) const {
    const int64_t begin = channel_begin(block), end = channel_begin(block + 1), size = columns(block, 0, 0).size();
    for (int i = 0; i < kTables; ++i) {
      Number* column = tables[i].at;
      if (plane_ == 1) {
        column = std::copy(coefficients[i] + begin, coefficients[i] + end, column);
      } else {
        for (int64_t channel = begin; channel < end; ++channel)
          column = std::fill_n(column, plane_, coefficients[i][channel]);
      }
      for (const Number* from = tables[i].at; column < tables[i].at + size + kLanes;) *column++ = *from++;
    }
  }

  int64_t channels_, total_;
  int64_t plane_;  // columns, or contiguous elements, that belong to one channel
  bool by_planes_, sums_;
  int threads_;
  bool stream_, ask_ahead_, together_;
  int64_t units_;  // what slices are made of: rows of the matrix, planes or pieces of planes
  int64_t pieces_ = 1, width_ = 0;
  int64_t block_channels_, blocks_, slices_;
  int64_t map_slices_;  // slices of a map that no sums go along with
};

}  // namespace normext::cpu::NORMEXT_ISA
