// row_launches.cuh -- how many threads share a row of which length, and how much of it each of them has: as data.
#pragma once
#include <iterator>
#include <utility>

#include "cuda/rows/row_statistics.cuh"

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
// Single elements on their way take a register each: two vectors, where there are threads enough.
constexpr RowLaunch kForwardUnaligned[] = {{4, 4, 1, 2},     {8, 4, 2, 2},     {16, 4, 4, 2},   {32, 8, 4, 2},
                                           {64, 16, 4, 2},   {96, 32, 3, 2},   {128, 32, 4, 2}, {256, 128, 2, 4},
                                           {512, 256, 2, 4}, {1024, 512, 2, 4}};
// RMSNorm's rows are aligned in practice: fewer kernels to build serve those that are not.
constexpr RowLaunch kForwardUnalignedFew[] = {{16, 4, 4, 2}, {128, 32, 4, 2}, {1024, 512, 2, 4}};

template <class T, class Statistics, bool kAligned>
constexpr const auto& forward_launches() {
  if constexpr (kAligned && sizeof(T) == 2)
    return kForwardOfHalfTypes;
  else if constexpr (kAligned)
    return kForward;
  else if constexpr (std::is_same_v<Statistics, Centered>)
    return kForwardUnaligned;
  else
    return kForwardUnalignedFew;
}

// ------------------------------------------------------------------------------------------------ backward
// Both inputs, the next row's, and the sums for the weight and the bias want registers: two vectors of a row a thread,
// three where the row is a multiple of three, and more threads for longer rows. Clusters are of two blocks: more,
// measured on an H200, lose more time waiting for each other than reading a row twice takes.
constexpr RowLaunch kBackward[] = {{.vectors = 4, .lanes = 4, .vecs = 1},
                                   {.vectors = 8, .lanes = 4, .vecs = 2},
                                   {.vectors = 16, .lanes = 8, .vecs = 2},
                                   {.vectors = 32, .lanes = 16, .vecs = 2},
                                   {.vectors = 64, .lanes = 32, .vecs = 2},
                                   {.vectors = 96, .lanes = 32, .vecs = 3},
                                   {.vectors = 128, .lanes = 64, .vecs = 2},
                                   {.vectors = 192, .lanes = 64, .vecs = 3},
                                   {.vectors = 256, .lanes = 128, .vecs = 2},
                                   {.vectors = 384, .lanes = 128, .vecs = 3},
                                   {.vectors = 512, .lanes = 256, .vecs = 2},
                                   {.vectors = 1024, .lanes = 512, .vecs = 2},
                                   {.vectors = 2048, .lanes = 512, .vecs = 2, .cluster = 2}};
constexpr RowLaunch kBackwardUnalignedFew[] = {{.vectors = 8, .lanes = 4, .vecs = 2},
                                               {.vectors = 64, .lanes = 32, .vecs = 2},
                                               {.vectors = 256, .lanes = 128, .vecs = 2},
                                               {.vectors = 1024, .lanes = 512, .vecs = 2},
                                               {.vectors = 2048, .lanes = 512, .vecs = 2, .cluster = 2}};

template <class Statistics, bool kAligned>
constexpr const auto& backward_launches() {
  if constexpr (kAligned || std::is_same_v<Statistics, Centered>)
    return kBackward;
  else
    return kBackwardUnalignedFew;
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
