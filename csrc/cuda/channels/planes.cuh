// planes.cuh -- sums and elementwise maps over [batch, channels, plane], one channel at a time: see plane_walk.cuh.
#pragma once
#include "cuda/elements/plane_walk.cuh"
#include "cuda/elements/reduce.cuh"

namespace normext::cuda {

template <class T, class Map>
using InputsOf = Inputs<T, Map::kInputs, Map::kOptional>;

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

// output[offset] = Map(in, k(i)), for element i of a vector of each input. Maps take elements one by one, or, with what
// they know at run time only, a vector at once, of which they may store something beside.
template <class T, int kSize, class Map, class K>
__device__ void map_vector(const Map& map, const Vector<T, kSize> (&in)[Map::kInputs], T* output, int64_t offset,
                           const K& k) {
  Compute<T> out[kSize];
  if constexpr (Map::kOfVectors) {
    Compute<T> x[Map::kInputs][kSize];
#pragma unroll
    for (int j = 0; j < Map::kInputs; ++j) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) x[j][i] = in[j][i];
    }
    map.apply(x, k, out);
    if constexpr (requires { map.beside; }) {
      if (map.beside) store_vector(map.beside + offset, x[0]);
      if (!output) return;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      Compute<T> x[Map::kInputs];
#pragma unroll
      for (int j = 0; j < Map::kInputs; ++j) x[j] = in[j][i];
      out[i] = Map::apply(x, k(i));
    }
  }
  store_vector(output + offset, out);
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

// ------------------------------------------------------------------------------------------------ launch configuration
// Slices so that there are some blocks for every SM, and each thread of them has several tiles to go through.
inline unsigned plane_slices(const Planes& planes, int sm_count) {
  constexpr int64_t kLeast = 16384;  // elements
  const int64_t wanted = (16 * int64_t{sm_count} + planes.channels - 1) / planes.channels;
  const int64_t most = (planes.elements() + kLeast - 1) / kLeast;
  return static_cast<unsigned>(wanted < most ? wanted : most);
}

}  // namespace normext::cuda
