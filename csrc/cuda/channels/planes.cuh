// planes.cuh -- sums and elementwise maps over [batch, channels, plane], one channel at a time: see plane_walk.cuh.
#pragma once
#include "cuda/channels/maps.cuh"
#include "cuda/elements/launch.cuh"
#include "cuda/elements/plane_walk.cuh"
#include "cuda/elements/reduce.cuh"

namespace normext::cuda {

// partials[channel][slice] = the sums over a slice. coefficients(channel, k) gives a Sum what it starts from.
template <class T, class Sum, int kSize, class In, class Coefficients>
__global__ void __launch_bounds__(kPlaneThreads, 2)
    sum_planes_kernel(const PlaneSlices slices, const In inputs, const Coefficients coefficients, double* partials) {
  follow();
  using Group = GroupSum<double, Sum::kSums, kPlaneThreads, kPlaneThreads, false>;
  SHARED_ARRAY(double, exchange, Group::kSharedValues);
  const unsigned channel = blockIdx.x / slices.slices, slice = blockIdx.x % slices.slices;
  Compute<T> k[Sum::kCoefficients];
  coefficients(channel, k);
  Sum sum;
  sum.start(k);
  sum_planes<T>(PlaneWalk<kSize, kPlaneThreads>(slices, channel, slice), inputs, sum, [](const auto&) {});
  double totals[Sum::kSums];
  sum.totals(k, totals);
  Group group_sum(exchange);
  group_sum(totals);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < Sum::kSums; ++i) partials[blockIdx.x * int64_t{Sum::kSums} + i] = totals[i];
  }
}

// output = Map(inputs, k), with a channel's coefficients k. The last slices come first: the sums have just read them.
template <class T, class Map, int kSize, class Coefficients>
__global__ void __launch_bounds__(kPlaneThreads, 2)
    map_planes_kernel(const PlaneSlices slices, const InputsOf<T, Map> inputs, T* output,
                      const Coefficients coefficients, const Map map) {
  follow();
  constexpr int kTile = kSize == 1 ? 8 : Map::kInputs < 3 ? 4 : 2;
  using A = Compute<T>;
  const unsigned block = gridDim.x - 1 - blockIdx.x, channel = block / slices.slices, slice = block % slices.slices;
  A k[Map::kCoefficients];
  coefficients(channel, k, slice == 0 && threadIdx.x == 0);
  PlaneWalk<kSize, kPlaneThreads> walk(slices, channel, slice);
  while (walk.left() > 0) {
    Vector<T, kSize> tile[kTile][Map::kInputs];
    int64_t offsets[kTile];
    const int count = min(walk.left(), kTile);
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      if (t >= count) continue;
      offsets[t] = walk.offset();
      inputs.fetch(offsets[t], tile[t]);
      walk.next();
    }
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      if (t >= count) continue;
      map_vector<T, kSize>(map, tile[t], output, offsets[t], [&](int) -> const auto& { return k; });
    }
  }
}

// ------------------------------------------------------------------------------------------------ launches
// Slices so that there are some blocks for every SM, and each thread of them has several tiles to go through.
inline unsigned plane_slices(const Planes& planes, int sm_count) {
  constexpr int64_t kLeast = 16384;  // elements
  const int64_t wanted = (16 * int64_t{sm_count} + planes.channels - 1) / planes.channels;
  const int64_t most = (planes.elements() + kLeast - 1) / kLeast;
  return static_cast<unsigned>(wanted < most ? wanted : most);
}

// Sums over `slices` slices of every channel: sum_planes_kernel's partials.
template <class T, class Sum, int kSize, class In, class Coefficients>
double* launch_sum_planes(const Planes& planes, unsigned slices, Run& run, const In& inputs,
                          const Coefficients& coefficients) {
  double* const partials = run.take<double>(planes.channels * slices * Sum::kSums);
  run.launch(sum_planes_kernel<T, Sum, kSize, In, Coefficients>,
             {.grid = grid_of(planes.channels * slices), .block = kPlaneThreads},
             PlaneSlices(planes, kSize, kPlaneThreads, slices), inputs, coefficients, partials);
  return partials;
}

template <class T, class Map, int kSize, class Coefficients>
void launch_map_planes(const Planes& planes, Run& run, const InputsOf<T, Map>& inputs, T* output,
                       const Coefficients& coefficients, const Map& map) {
  const PlaneSlices slices(planes, kSize, kPlaneThreads, plane_slices(planes, run.device.sm_count));
  run.launch(map_planes_kernel<T, Map, kSize, Coefficients>,
             {.grid = grid_of(planes.channels * slices.slices), .block = kPlaneThreads}, slices, inputs, output,
             coefficients, map);
}

}  // namespace normext::cuda
