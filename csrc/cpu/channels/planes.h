// planes.h -- passes over the planes of some channels, in the order of memory: sample after sample, in each the block's
// channels one after another, each with its own sums and coefficients.
#pragma once
#include "cpu/elements/passes.h"

namespace normext::cpu::NORMEXT_ISA {

constexpr int64_t kBlockChannels = 32;

// The channels [channel, channel_end) of the units [unit, unit_end). A unit is a sample's plane, or one of the `pieces`
// of a long plane. At most kBlockChannels channels.
struct PlaneBlock {
  int64_t channels, plane, pieces, unit, unit_end, channel, channel_end;

  // Where a unit's elements of a channel begin.
  int64_t run_begin(int64_t u, int64_t c) const {
    return (u / pieces * channels + c) * plane + plane * (u % pieces) / pieces;
  }

  // Calls f(channel, begin, end, next) for each run of elements of a channel: `next` is the channel whose run, the next
  // one, begins where this one ends, or -1.
  template <class F>
  NORMEXT_INLINE void for_runs(const F& f) const {
    for (int64_t u = unit; u < unit_end; ++u) {
      const int64_t piece = u % pieces, length = plane * (piece + 1) / pieces - plane * piece / pieces;
      const bool in_order = channel_end - channel == channels && u + 1 < unit_end;
      int64_t begin = run_begin(u, channel);
      for (int64_t c = channel; c < channel_end; ++c, begin += plane) {
        const int64_t next = c + 1 < channel_end ? c + 1 : in_order ? channel : -1;
        f(c, begin, begin + length, pieces == 1 ? next : -1);
      }
    }
  }
};

// Sum (sums.h) over each channel of a block. kAhead as in Inputs.
template <class Sum, int64_t kAhead, class T>
struct PlaneSums {
  const T* const (&in)[Sum::kInputs];
  const PlaneBlock block;
  const Scalar<T>* const (&coefficients)[Sum::kCoefficients];
  const Sum none;
  Doubles totals[kBlockChannels][Sum::kSums];

  PlaneSums(const Sum& none, const T* const (&in)[Sum::kInputs], const PlaneBlock& block,
            const Scalar<T>* const (&coefficients)[Sum::kCoefficients])
      : in(in), block(block), coefficients(coefficients), none(none) {
    for (int64_t i = 0; i < block.channel_end - block.channel; ++i) std::fill_n(totals[i], Sum::kSums, Doubles{});
  }

  // Of one run, to be summed.
  NORMEXT_INLINE auto run(int64_t channel, int64_t begin, int64_t end) {
    Scalar<T> k[Sum::kCoefficients];
    for (int i = 0; i < Sum::kCoefficients; ++i) k[i] = Sum::kDot ? 0 : coefficients[i][channel];
    using From = Inputs<T, Sum::kInputs, kAhead>;
    return RunSums<Sum, T, From>(From(in), begin, end, k, totals[channel - block.channel], none);
  }
  void add_all() {
    block.for_runs([&](int64_t channel, int64_t begin, int64_t end, int64_t)
                       NORMEXT_INLINE { run(channel, begin, end).finish(); });
  }
};

// The sums that go along with the map of the block before: run by run, the same number of channels further.
template <class Sums>
struct NextSums {
  Sums& sums;
  const int64_t channels, elements;

  NORMEXT_INLINE auto run(int64_t channel, int64_t begin, int64_t end) const {
    const bool none = channel + channels >= sums.block.channel_end;
    const int64_t next = none ? sums.block.channel : channel + channels;
    return sums.run(next, begin + elements, none ? begin + elements : end + elements);
  }
};
struct NoSums {
  NoSteps run(int64_t, int64_t, int64_t) const { return {}; }
};

// map_planes() where every plane is whole lines, which are all the same then: short planes are hardly more than the
// questions where lines begin and end. (float32, 8 x 8: 0.6 of the time.)
template <class Map, class Inputs, class T, class Streams>
NORMEXT_INLINE inline void map_whole_lines(const Map& map, const Inputs& inputs, T* out, const PlaneBlock& block,
                                           const Scalar<T>* const (&coefficients)[Map::kCoefficients], Streams streams,
                                           int64_t ahead) {
  block.for_runs([&](int64_t channel, int64_t begin, int64_t end, int64_t) NORMEXT_INLINE {
    Vector<T> k[Map::kCoefficients];
    for (int i = 0; i < Map::kCoefficients; ++i) k[i] = broadcast(coefficients[i][channel]);
    const auto apply = [&](int64_t at, int64_t count) NORMEXT_INLINE {
      Vector<T> x[Map::kInputs];
      inputs(at, count, x);
      return map.apply(x, k);
    };
    for (int64_t at = begin; at < end; at += kLineVectors<T> * kLanes) {
      if (ahead) inputs.prefetch(at + ahead);
      map_line(streams, out, at, apply);
    }
  });
}

// out = map.apply(in, coefficients), element by element. If `ahead` is not 0, it asks for what lies so many elements
// ahead. `next_sums`, NextSums or NoSums, go along with it. A line that two runs share is written once, with the
// coefficients of both. `streams` as in map_vectors.
template <class Map, class Inputs, class T, class Streams, class Next>
[[gnu::noinline]] void map_planes(const Map map, const Inputs inputs, T* out, const PlaneBlock& block,
                                  const Scalar<T>* const (&coefficients)[Map::kCoefficients], Streams streams,
                                  int64_t ahead, const Next& next_sums) {
  constexpr int64_t kLine = kLineVectors<T> * kLanes;
  if constexpr (std::is_same_v<Next, NoSums>)
    if (block.pieces == 1 && block.plane % kLine == 0 && before_line(out) == 0)
      return map_whole_lines(map, inputs, out, block, coefficients, streams, ahead);
  const auto ask_ahead = [&](int64_t at) NORMEXT_INLINE {
    if (ahead) inputs.prefetch(at + ahead);
  };
  int64_t written = 0;  // where the line ends that the run before shares with this one
  block.for_runs([&](int64_t channel, int64_t begin, int64_t end, int64_t next) NORMEXT_INLINE {
    Vector<T> k[Map::kCoefficients], next_k[Map::kCoefficients];
    for (int i = 0; i < Map::kCoefficients; ++i) k[i] = broadcast(coefficients[i][channel]);
    const auto apply = [&](int64_t at, int64_t count) NORMEXT_INLINE {
      Vector<T> x[Map::kInputs];
      inputs(at, count, x);
      return map.apply(x, k);
    };
    const auto apply_both = [&](int64_t at, int64_t count) NORMEXT_INLINE {
      Vector<T> x[Map::kInputs], both[Map::kCoefficients];
      inputs(at, count, x);
      for (int i = 0; i < Map::kCoefficients; ++i) both[i] = blend(k[i], next_k[i], end - at);
      return map.apply(x, both);
    };
    const int64_t beyond_line = reinterpret_cast<uintptr_t>(out + end) % 64 / sizeof(T);
    const int64_t own_end = next >= 0 && block.plane >= kLine ? end - beyond_line : end;
    map_vectors(streams, out, std::max(begin, written), own_end, apply, ask_ahead, next_sums.run(channel, begin, end));
    if (own_end == end) return;
    for (int i = 0; i < Map::kCoefficients; ++i) next_k[i] = broadcast(coefficients[i][next]);
    written = own_end + kLine;
    map_line(streams, out, own_end, apply_both);
  });
}

}  // namespace normext::cpu::NORMEXT_ISA
