// group_launches.cuh -- which blocks keep a group of a sample on chip: as data.
#pragma once
#include <cstdint>
#include <iterator>
#include <utility>

namespace normext::cuda {

// The first entry that a group fits decides, so the choice depends on nothing but a sample's shape and the GPU.
struct GroupLaunch {
  int64_t bytes;  // of a group, in all tensors that are kept
  int threads, cluster;
};

// No GPU has run these: they follow from what BatchNorm's kernels showed on an H200, where blocks of 16 to 74 KB did
// best, several of them on an SM, and from 160 KB a block on two passes were as fast.
constexpr GroupLaunch kGroupLaunches[] = {
    {2 << 10, 32, 1},      // planes of up to 16 x 16 alone: a warp each, no barriers, 25 blocks on an SM and more
    {8 << 10, 128, 1},     // up to 4 vectors a thread; five blocks share an SM at least
    {32 << 10, 256, 1},    // up to 8; loads of three blocks overlap
    {64 << 10, 256, 2},    // a batch of two has few groups: shares of 16 to 32 KB bring in more SMs
    {128 << 10, 256, 4},   // the same
    {592 << 10, 256, 8},   // up to 74 KB a block: three of them share an SM
    {1280 << 10, 512, 8},  // up to 160 KB a block, one on an SM: still a reading less than two passes
    {160 << 10, 256, 1},   // no clusters: one block on an SM, or two
};
// Elements one by one, where planes are no multiple of a vector or arrays are not aligned: fewer kernels to build.
constexpr GroupLaunch kGroupLaunchesUnaligned[] = {
    {2 << 10, 32, 1},  // planes of 7 x 7 among them
    {32 << 10, 256, 1},
    {592 << 10, 256, 8},
    {160 << 10, 256, 1},  // no clusters
};

template <bool kVectors>
constexpr const auto& group_launches() {
  if constexpr (kVectors)
    return kGroupLaunches;
  else
    return kGroupLaunchesUnaligned;
}

// Calls launch<kLaunch>() for the group's entry, and for those behind it until one returns true: whether one has.
template <bool kVectors, class F>
bool choose_group_launch(int64_t bytes, bool has_clusters, const F& launch) {
  constexpr const auto& kTable = group_launches<kVectors>();
  return [&]<size_t... kIndex>(std::index_sequence<kIndex...>) {
    return ((bytes <= kTable[kIndex].bytes && (has_clusters || kTable[kIndex].cluster == 1) &&
             launch.template operator()<kTable[kIndex].threads, kTable[kIndex].cluster>()) ||
            ...);
  }(std::make_index_sequence<std::size(kTable)>{});
}

}  // namespace normext::cuda
