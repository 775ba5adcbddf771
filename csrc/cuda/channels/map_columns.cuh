// map_columns.cuh -- elementwise maps over the columns of channels.
#pragma once
#include "cuda/channels/columns.cuh"
#include "cuda/channels/maps.cuh"

namespace normext::cuda {

constexpr int kMapColumnThreads = 256;

template <class Map>
constexpr int kMapColumnBlocks = Map::kInputs == 1 ? 3 : 2;

// output = Map(inputs, k), with each column's channel's coefficients k. The last rows come first.
template <class T, class Map, int kSize, class Matrix, class Coefficients>
__global__ void __launch_bounds__(kMapColumnThreads, kMapColumnBlocks<Map>)
    map_columns_kernel(const Matrix columns, const int64_t slice_rows, const InputsOf<T, Map> inputs, T* output,
                       const Coefficients coefficients, const Map map) {
  follow();
  constexpr int kTile = Map::kInputs < 3 ? 4 : 2;  // rows
  using A = Compute<T>;
  using Staged = ColumnCoefficients<A, kSize, Map::kCoefficients>;
  SHARED_ARRAY(uint4, staged, Staged::kSharedVectors);
  const unsigned slice = gridDim.y - 1 - blockIdx.y, block = gridDim.x - 1 - blockIdx.x;
  const ColumnPlace<kSize> place(columns, slice_rows, block, slice);
  Vector<T, kSize> tile[kTile][Map::kInputs];
  const auto fetch = [&](int done) {
    const int64_t at = place.offset + done * place.step;
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      if (done + t < place.rows) inputs.fetch(at + t * place.step, tile[t]);
    }
  };
  fetch(0);  // on its way with the coefficients
  Staged stage(staged);
  stage.template fetch<kMapColumnThreads>(
      place.first, columns.width, [&](int64_t column, A(&k)[Map::kCoefficients], bool mine) {
        const int64_t group = columns.group(column);
        const bool first =
            mine && slice == 0 && group < columns.channels.value && column == group * columns.inner.value;
        coefficients(columns.sample(block) * columns.channels.value + columns.channel_of(group), k, first);
      });
  __syncthreads();
  A k[kSize][Map::kCoefficients];
  stage.read(k);
  for (int done = 0; done < place.rows; done += kTile) {
    const int64_t at = place.offset + done * place.step;
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      if (done + t >= place.rows) continue;
      map_vector<T, kSize>(map, tile[t], output, at + t * place.step, [&](int i) -> const auto& { return k[i]; });
    }
    fetch(done + kTile);
  }
}

}  // namespace normext::cuda
