// columns.cuh -- sums and elementwise maps over a matrix whose columns belong to channels: BatchNorm where the channels
// are innermost, [N, C] among it.
//
// A thread has a vector of columns and walks down the rows; the sums of a block's threads meet at the end. Where the
// number of channels is no multiple of a vector, several pixels make one row.
#pragma once
#include "planes.cuh"

namespace normext::cuda {

constexpr int kColumnThreads = 256;
constexpr int kColumnWarps = kColumnThreads / kWarpSize;

struct Columns {
  int64_t rows, width;      // the tensor, row after row
  int64_t channels, inner;  // column c is of channel c / inner % channels

  __device__ int64_t channel(int64_t column) const {
    if (((column | inner | channels) >> 32) != 0) return column / inner % channels;
    return static_cast<unsigned>(column) / static_cast<unsigned>(inner) %
           static_cast<unsigned>(channels);  // far cheaper
  }
};

// Which columns and rows are a thread's. blockDim.x threads, a power of two and at most a warp, have neighbouring
// vectors of a row, blockDim.y neighbouring rows.
template <int kSize>
struct ColumnPlace {
  int64_t column, row, row_end, slice;
  int row_step;

  __device__ ColumnPlace(const Columns& columns, unsigned slices, unsigned block)
      : column((block / slices * blockDim.x + threadIdx.x) * kSize), slice(block % slices), row_step(blockDim.y) {
    row = columns.rows * slice / slices + threadIdx.y;
    row_end = column < columns.width ? columns.rows * (slice + 1) / slices : 0;
  }
};

// The sum over a block's rows of a value per column, in fixed order; emit(column of the block, sum).
template <int kSize, class Emit>
__device__ void sum_rows(double (&values)[kSize], double* shared, const Emit& emit) {
  const int x = threadIdx.x, warp = (threadIdx.y * blockDim.x + x) / kWarpSize, width = blockDim.x * kSize;
  strided_warp_sum(values, blockDim.x);                                          // the rows that share a warp
  if ((threadIdx.y * blockDim.x + x) % kWarpSize == static_cast<unsigned>(x)) {  // a warp's first row
#pragma unroll
    for (int i = 0; i < kSize; ++i) shared[warp * width + x * kSize + i] = values[i];
  }
  __syncthreads();
  for (int c = threadIdx.y * blockDim.x + x; c < width; c += kColumnThreads) {
    double sum = 0;
    for (int w = 0; w < kColumnWarps; ++w) sum += shared[w * width + c];
    emit(c, sum);
  }
  __syncthreads();
}

// Blocks that fit on an SM at once: the float64 sums of a vector's columns are what fills the registers.
template <class Sum, int kSize>
constexpr int kColumnBlocks = Sum::kSums * kSize > 16 ? 1 : 2;

// partials[column][slice] = the sums over a slice of the rows.
template <class T, class Sum, int kSize, class Coefficients>
__global__ void __launch_bounds__(kColumnThreads, kColumnBlocks<Sum, kSize>)
    sum_columns_kernel(const Columns columns, const unsigned slices, const Inputs<T, Sum::kInputs> inputs,
                       const Coefficients coefficients, double* partials) {
  follow();
  constexpr int kTile = 8 / Sum::kInputs;  // rows: as many as there are registers for
  using A = Compute<T>;
  SHARED_ARRAY(double, shared, kColumnWarps * kWarpSize * kSize);
  const ColumnPlace<kSize> place(columns, slices, blockIdx.x);
  const auto start = [&](int i, A(&k)[Sum::kCoefficients]) {
    coefficients(columns.channel(place.column + i < columns.width ? place.column + i : 0), k);
  };
  Sum sums[kSize];
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    A k[Sum::kCoefficients];
    start(i, k);
    sums[i].start(k);
  }

  for (int64_t row = place.row; row < place.row_end; row += kTile * place.row_step) {
    Vector<T, kSize> tile[kTile][Sum::kInputs] = {};
    int count = 0;
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      const int64_t r = row + t * place.row_step;
      if (r >= place.row_end) continue;
      inputs.fetch(r * columns.width + place.column, tile[t]);
      ++count;
    }
    const auto add = [&](int n) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        A down[Sum::kInputs][kTile];
#pragma unroll
        for (int t = 0; t < kTile; ++t) {
#pragma unroll
          for (int j = 0; j < Sum::kInputs; ++j) down[j][t] = tile[t][j][i];
        }
        sums[i].add(down, n);
      }
    };
    if (count == kTile)
      add(kTile);
    else
      add(count);
  }

  double totals[Sum::kSums][kSize];
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    A k[Sum::kCoefficients];
    double of_column[Sum::kSums];
    start(i, k);
    sums[i].totals(k, of_column);
#pragma unroll
    for (int s = 0; s < Sum::kSums; ++s) totals[s][i] = of_column[s];
  }
  const int64_t first = place.column - threadIdx.x * kSize;
#pragma unroll
  for (int s = 0; s < Sum::kSums; ++s) {
    sum_rows(totals[s], shared, [&](int c, double sum) {
      if (first + c < columns.width) partials[((first + c) * slices + place.slice) * Sum::kSums + s] = sum;
    });
  }
}

// output = Map(inputs, k), with each column's channel's coefficients k. The last rows come first.
template <class T, class Map, int kSize, class Coefficients>
__global__ void __launch_bounds__(kColumnThreads, 2)
    map_columns_kernel(const Columns columns, const unsigned slices, const Inputs<T, Map::kInputs> inputs, T* output,
                       const Coefficients coefficients) {
  follow();
  constexpr int kTile = 4;  // rows
  using A = Compute<T>;
  const ColumnPlace<kSize> place(columns, slices, gridDim.x - 1 - blockIdx.x);
  A k[kSize][Map::kCoefficients];
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const int64_t column = place.column + i;
    const bool first = place.slice == 0 && threadIdx.y == 0 && column < columns.channels * columns.inner &&
                       column % columns.inner == 0;
    coefficients(columns.channel(column < columns.width ? column : 0), k[i], first);
  }
  for (int64_t row = place.row; row < place.row_end; row += kTile * place.row_step) {
    Vector<T, kSize> tile[kTile][Map::kInputs];
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      const int64_t r = row + t * place.row_step;
      if (r < place.row_end) inputs.fetch(r * columns.width + place.column, tile[t]);
    }
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      const int64_t r = row + t * place.row_step;
      if (r >= place.row_end) continue;
      A wide[Map::kInputs][kSize], out[kSize];
      inputs.widen(tile[t], 0, wide);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        A x[Map::kInputs];
#pragma unroll
        for (int j = 0; j < Map::kInputs; ++j) x[j] = wide[j][i];
        out[i] = Map::apply(x, k[i]);
      }
      store_vector(output + r * columns.width + place.column, out);
    }
  }
}

// ------------------------------------------------------------------------------------------------ launch configuration
struct ColumnLaunch {
  dim3 block;
  unsigned slices, grid;
};

// Neighbouring threads along a row as far as it goes; slices so that there are some blocks for every SM, and each
// thread has at least two tiles of rows.
inline ColumnLaunch column_launch(const Columns& columns, int size, int sm_count) {
  unsigned x = 1;
  while (x < kWarpSize && x * size < columns.width) x *= 2;
  const unsigned y = kColumnThreads / x;
  const int64_t across = (columns.width + int64_t{x} * size - 1) / (int64_t{x} * size);
  const int64_t wanted = (8 * int64_t{sm_count} + across - 1) / across, most = (columns.rows + 16 * y - 1) / (16 * y);
  const int64_t slices = wanted < most ? wanted : most;
  return {dim3(x, y), static_cast<unsigned>(slices), static_cast<unsigned>(across * slices)};
}

}  // namespace normext::cuda
