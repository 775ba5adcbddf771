// row_launches.cuh -- how many threads share a row of which length, and how much of it each of them has: as data.
// ring_launches.cuh has the rule for rows in a ring.
#pragma once
#include <cstdint>
#include <iterator>
#include <type_traits>
#include <utility>

#include "cuda/rows/row_sources.cuh"

namespace normext::cuda {

struct RowLaunch {
  int vectors;      // rows of up to so many vectors
  int lanes, vecs;  // kLanes and kVecs of the kernel
  // Forward: rows that a block goes through, one for each group of its lanes at a time, where there are so many. Few,
  // for then the GPU hands out blocks to whichever SM is through with its own; several, for weight and bias to pay.
  int rounds = 1;
  int cluster = 1;  // backward: blocks that share a row, where the GPU has clusters
};

// ------------------------------------------------------------------------------------------------ forward
// Few threads with several vectors each: loads on the way, and what is the same for a whole row is shared by more of
// it. A part of a warp needs no barrier. The steps are what an H200 does best with (notes/cuda_kernels.md).
constexpr RowLaunch kForwardOfHalfTypes[] = {{4, 4, 1, 2},      {8, 4, 2, 2},      {16, 4, 4, 2},     {32, 8, 4, 2},
                                             {64, 16, 4, 2},    {96, 32, 3, 2},    {128, 32, 4, 2},   {192, 64, 3, 4},
                                             {256, 64, 4, 4},   {512, 128, 4, 4},  {768, 256, 3, 4},  {1024, 256, 4, 2},
                                             {1536, 512, 3, 4}, {2048, 512, 4, 4}, {4096, 1024, 4, 8}};
constexpr RowLaunch kForward[] = {{4, 4, 1, 2},      {8, 4, 2, 2},      {16, 4, 4, 2},     {32, 8, 4, 2},
                                  {64, 16, 4, 2},    {96, 32, 3, 2},    {128, 32, 4, 2},   {192, 64, 3, 4},
                                  {256, 64, 4, 4},   {512, 256, 2, 4},  {768, 256, 3, 4},  {1024, 256, 4, 2},
                                  {1536, 512, 3, 4}, {2048, 512, 4, 4}, {4096, 1024, 4, 8}};
// Of what is rare, fewer kernels to build serve wider ranges, and both LayerNorm and RMSNorm: rows that are not
// aligned, whose single elements on their way take a register each; all of float64; input + residual, which takes more
// registers, of float32 above all.
constexpr RowLaunch kForwardUnaligned[] = {
    {8, 4, 2, 2}, {32, 8, 4, 2}, {128, 32, 4, 2}, {512, 256, 2, 4}, {1024, 512, 2, 4}};
constexpr RowLaunch kForwardOfDoubles[] = {{8, 4, 2, 2}, {128, 32, 4, 2}, {1024, 512, 2, 4}, {4096, 1024, 4, 8}};
constexpr RowLaunch kForwardOfSums[] = {
    {32, 8, 4, 2}, {128, 32, 4, 2}, {512, 128, 4, 4}, {1024, 256, 4, 2}, {2048, 512, 4, 4}};
constexpr RowLaunch kForwardOfWideSums[] = {{128, 64, 2, 2}, {512, 256, 2, 4}, {1024, 512, 2, 4}};

template <class T, class Source, bool kAligned>
constexpr const auto& forward_launches() {
  if constexpr (sizeof(T) == 8)
    return kForwardOfDoubles;
  else if constexpr (!kAligned)
    return kForwardUnaligned;
  else if constexpr (sizeof(typename Source::Element) > sizeof(T))
    return kForwardOfWideSums;
  else if constexpr (Source::kAdds)
    return kForwardOfSums;
  else if constexpr (sizeof(T) == 2)
    return kForwardOfHalfTypes;
  else
    return kForward;
}

// ------------------------------------------------------------------------------------------------ backward
// Both inputs, the next row's, and the sums for the weight and the bias want registers: two vectors of a row a thread,
// and more threads for longer rows. Three where two would leave more than a quarter of the threads without work, for
// what the others have on its way is then too little: 17 to 24 KB an SM, where an H200 needs 25. Clusters are of two
// blocks: more, measured on an H200, lose more time waiting for each other than reading a row twice takes.
constexpr RowLaunch kBackward[] = {
    {.vectors = 4, .lanes = 4, .vecs = 1},      {.vectors = 8, .lanes = 4, .vecs = 2},
    {.vectors = 12, .lanes = 4, .vecs = 3},     {.vectors = 16, .lanes = 8, .vecs = 2},
    {.vectors = 24, .lanes = 8, .vecs = 3},     {.vectors = 32, .lanes = 16, .vecs = 2},
    {.vectors = 48, .lanes = 16, .vecs = 3},    {.vectors = 64, .lanes = 32, .vecs = 2},
    {.vectors = 96, .lanes = 32, .vecs = 3},    {.vectors = 128, .lanes = 64, .vecs = 2},
    {.vectors = 192, .lanes = 64, .vecs = 3},   {.vectors = 256, .lanes = 128, .vecs = 2},
    {.vectors = 384, .lanes = 128, .vecs = 3},  {.vectors = 512, .lanes = 256, .vecs = 2},
    {.vectors = 1024, .lanes = 512, .vecs = 2}, {.vectors = 2048, .lanes = 512, .vecs = 2, .cluster = 2}};
// Of what is rare: see forward.
constexpr RowLaunch kBackwardUnaligned[] = {
    {.vectors = 8, .lanes = 4, .vecs = 2},      {.vectors = 64, .lanes = 32, .vecs = 2},
    {.vectors = 256, .lanes = 128, .vecs = 2},  {.vectors = 512, .lanes = 256, .vecs = 2},
    {.vectors = 1024, .lanes = 512, .vecs = 2}, {.vectors = 2048, .lanes = 512, .vecs = 2, .cluster = 2}};
constexpr RowLaunch kBackwardOfDoubles[] = {{.vectors = 8, .lanes = 4, .vecs = 2},
                                            {.vectors = 64, .lanes = 32, .vecs = 2},
                                            {.vectors = 1024, .lanes = 512, .vecs = 2},
                                            {.vectors = 2048, .lanes = 512, .vecs = 2, .cluster = 2}};
constexpr RowLaunch kBackwardOfSums[] = {
    {.vectors = 32, .lanes = 16, .vecs = 2},    {.vectors = 128, .lanes = 64, .vecs = 2},
    {.vectors = 256, .lanes = 128, .vecs = 2},  {.vectors = 512, .lanes = 256, .vecs = 2},
    {.vectors = 1024, .lanes = 512, .vecs = 2}, {.vectors = 2048, .lanes = 512, .vecs = 2, .cluster = 2}};
constexpr RowLaunch kBackwardOfWideSums[] = {{.vectors = 128, .lanes = 64, .vecs = 2},
                                             {.vectors = 512, .lanes = 256, .vecs = 2},
                                             {.vectors = 1024, .lanes = 512, .vecs = 2}};

template <class T, class Source, bool kAligned>
constexpr const auto& backward_launches() {
  if constexpr (sizeof(T) == 8)
    return kBackwardOfDoubles;
  else if constexpr (!kAligned)
    return kBackwardUnaligned;
  else if constexpr (sizeof(typename Source::Element) > sizeof(T))
    return kBackwardOfWideSums;
  else if constexpr (Source::kAdds)
    return kBackwardOfSums;
  else
    return kBackward;
}

// ------------------------------------------------------------------------------------------------ choosing
// Calls launch<kLaunch>() for the rows' entry of a table, and for those behind it until one returns true: whether one
// has.
template <const auto& kLaunches, class F>
bool choose_launch(int64_t vectors, const F& launch) {
  return [&]<size_t... kIndex>(std::index_sequence<kIndex...>) {
    return ((vectors <= kLaunches[kIndex].vectors && launch.template operator()<kLaunches[kIndex]>()) || ...);
  }(std::make_index_sequence<std::size(kLaunches)>{});
}

}  // namespace normext::cuda
