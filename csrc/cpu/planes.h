// planes.h -- passes over the planes of some channels, in the order of memory: sample after sample, in each the block's
// channels one after another, each with its own sums and coefficients.
#pragma once
#include "passes.h"

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

  // Calls f(channel, begin, end) for each run of elements of a channel.
  template <class F>
  NORMEXT_INLINE void for_runs(const F& f) const {
    for (int64_t u = unit; u < unit_end; ++u) {
      const int64_t piece = u % pieces, length = plane * (piece + 1) / pieces - plane * piece / pieces;
      int64_t begin = run_begin(u, channel);
      for (int64_t c = channel; c < channel_end; ++c, begin += plane) f(c, begin, begin + length);
    }
  }
};

// Sum (sums.h) over each channel of a block. kAhead as in Inputs.
template <class Sum, int64_t kAhead, class T>
struct PlaneSums {
  const T* const (&in)[Sum::kInputs];
  const PlaneBlock block;
  const Scalar<T>* const (&coefficients)[Sum::kCoefficients];
  Doubles totals[kBlockChannels][Sum::kSums];

  PlaneSums(const T* const (&in)[Sum::kInputs], const PlaneBlock& block,
            const Scalar<T>* const (&coefficients)[Sum::kCoefficients])
      : in(in), block(block), coefficients(coefficients) {
    for (int64_t i = 0; i < block.channel_end - block.channel; ++i) std::fill_n(totals[i], Sum::kSums, Doubles{});
  }

  // Of one run, to be summed.
  NORMEXT_INLINE auto run(int64_t channel, int64_t begin, int64_t end) {
    Scalar<T> k[Sum::kCoefficients];
    for (int i = 0; i < Sum::kCoefficients; ++i) k[i] = Sum::kDot ? 0 : coefficients[i][channel];
    using From = Inputs<T, Sum::kInputs, kAhead>;
    return RunSums<Sum, T, From>(From(in), begin, end, k, totals[channel - block.channel]);
  }
  void add_all() {
    block.for_runs([&](int64_t channel, int64_t begin, int64_t end)
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

// out = Map::apply(in, coefficients), element by element. If `ahead` is not 0, it asks for what lies so many elements
// ahead. `next_sums`, NextSums or NoSums, go along with it.
template <class Map, bool kStream, class T, class Next>
void map_planes(const T* const (&in)[Map::kInputs], T* out, const PlaneBlock& block,
                const Scalar<T>* const (&coefficients)[Map::kCoefficients], int64_t ahead, const Next& next_sums) {
  // Elements [begin, end) of a channel go to `to` and what follows it.
  const auto map = [&]<bool kStreamNow>(int64_t channel, int64_t begin, int64_t end, T* to) NORMEXT_INLINE {
    const Inputs<T, Map::kInputs> inputs(in);
    Vector<T> k[Map::kCoefficients];
    for (int i = 0; i < Map::kCoefficients; ++i) k[i] = broadcast(coefficients[i][channel]);
    const auto apply = [&](int64_t at, int64_t count) NORMEXT_INLINE {
      Vector<T> x[Map::kInputs];
      inputs(begin + at, count, x);
      return Map::apply(x, k);
    };
    const auto ask_ahead = [&](int64_t at) NORMEXT_INLINE {
      if (ahead) inputs.prefetch(begin + at + ahead);
    };
    map_vectors<kStreamNow>(to, 0, end - begin, apply, ask_ahead, next_sums.run(channel, begin, end));
  };
  // In the order of memory neighbours come at once, and lines that they share are whole again in the cache.
  const bool in_order = block.channel_end - block.channel == block.channels;
  const bool shorter = block.plane < kStep;  // longer ones: 0.86 to 1.0 times
  if (kStream && !in_order && shorter && should_stage(out, block.plane * static_cast<int64_t>(sizeof(T)))) {
    Stage<T> stage;
    int64_t first = 0, next = 0;  // what the stage holds
    const auto empty = [&] {
      stage.stream_to(out + first, next - first);
      first = next;
    };
    block.for_runs([&](int64_t channel, int64_t begin, int64_t end) NORMEXT_INLINE {
      if (begin != next || end - first > stage.kSize) {
        empty();
        first = begin;
      }
      map.template operator()<false>(channel, begin, end, stage.at + (begin - first));
      next = end;
    });
    empty();
    return;
  }
  block.for_runs([&](int64_t channel, int64_t begin, int64_t end)
                     NORMEXT_INLINE { map.template operator()<kStream>(channel, begin, end, out + begin); });
}

}  // namespace normext::cpu::NORMEXT_ISA
