// sum_columns.cuh -- sums over the columns of channels: a thread's columns first, then a block's rows, then the columns
// of each channel that the block has.
#pragma once
#include "cuda/channels/column_sums.cuh"
#include "cuda/channels/columns.cuh"
#include "cuda/elements/reduce.cuh"

namespace normext::cuda {

constexpr int kSumColumnThreads = 128;

// float64 totals in shared memory, for which registers have no room: of every sum over every column of each thread. A
// thread's own until store().
template <int kSums, int kSize>
class ColumnTotals {
 public:
  static constexpr int kSharedValues = kSums * kSize * kSumColumnThreads;

  __device__ explicit ColumnTotals(double* shared) : shared_(shared) {}

  __device__ void clear() const {
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) of(s, i, thread()) = 0;
    }
  }

  __device__ void add(int i, const double (&sums)[kSums]) const {
#pragma unroll
    for (int s = 0; s < kSums; ++s) of(s, i, thread()) += sums[s];
  }

  template <class F>
  __device__ void change(int i, const F& f) const {
    double sums[kSums];
#pragma unroll
    for (int s = 0; s < kSums; ++s) sums[s] = of(s, i, thread());
    f(sums);
#pragma unroll
    for (int s = 0; s < kSums; ++s) of(s, i, thread()) = sums[s];
  }

  // partials[group][piece][slice] = the totals of the block's columns of a group; see sum_columns_kernel.
  template <class Matrix>
  __device__ void store(const Matrix& columns, const ColumnPlace<kSize>& place, unsigned pieces,
                        double* partials) const {
    __syncthreads();
    // The block's rows together, in fixed order.
    for (int i = threadIdx.y; i < kSize; i += blockDim.y) {
      double sum[kSums] = {};
#pragma unroll 4
      for (unsigned y = 0; y < blockDim.y; ++y) {
#pragma unroll
        for (int s = 0; s < kSums; ++s) sum[s] += of(s, i, y * blockDim.x + threadIdx.x);
      }
      if (kSize > 1 && columns.inner.value > 1) {
#pragma unroll
        for (int s = 0; s < kSums; ++s) of(s, i, threadIdx.x) = sum[s];  // nobody else has read it
      } else if (place.column + i < columns.width) {
        put(partials, columns.sample(blockIdx.x) * columns.width + place.column + i, sum);
      }
    }
    if constexpr (kSize > 1) {  // single columns are groups of their own: who sums planes by columns has vectors
      if (columns.inner.value == 1) return;
      __syncthreads();
      store_groups(columns, place.first, pieces, partials);
    }
  }

 private:
  double* shared_;

  __device__ static unsigned thread() { return threadIdx.y * blockDim.x + threadIdx.x; }

  // Of sum s over column i of thread t.
  __device__ double& of(int s, int i, unsigned t) const { return shared_[(s * kSize + i) * kSumColumnThreads + t]; }

  // The block's columns of each group together: a warp a group.
  __device__ void store_groups(const Columns& columns, int64_t first, unsigned pieces, double* partials) const {
    const int64_t width = blockDim.x * kSize, end = min(first + width, columns.width);
    for (int64_t group = columns.group(first) + thread() / kWarpSize; group * columns.inner.value < end;
         group += kSumColumnThreads / kWarpSize) {
      const int64_t group_begin = group * columns.inner.value, group_end = group_begin + columns.inner.value;
      const int begin = static_cast<int>(max(group_begin, first) - first);
      double sum[kSums] = {};
      for (int c = begin + thread() % kWarpSize; c < min(group_end, end) - first; c += kWarpSize) {
#pragma unroll
        for (int s = 0; s < kSums; ++s) sum[s] += of(s, c % kSize, c / kSize);
      }
      warp_sum<kWarpSize>(sum);
      if (thread() % kWarpSize != 0) continue;
      const int64_t piece = blockIdx.x - group_begin / width;
      put(partials, group * pieces + piece, sum);
      // Groups that begin elsewhere in a block may have one piece less than others.
      if (group_end <= first + width && piece + 1 < pieces) put(partials, group * pieces + piece + 1, {});
    }
  }

  __device__ static void put(double* partials, int64_t index, const double (&sum)[kSums]) {
#pragma unroll
    for (int s = 0; s < kSums; ++s) partials[(index * gridDim.y + blockIdx.y) * kSums + s] = sum[s];
  }
};

// Blocks that fit on an SM at once. What fills the registers are a tile of rows and the short sums of a vector's
// columns.
template <class Sum, int kSize>
constexpr int kSumColumnBlocks = kSize == 1                 ? 8
                                 : Sum::kSums * kSize == 16 ? 6
                                 : Sum::kCoefficients == 2  ? 5
                                 : Sum::kInputs == 2        ? 4
                                                            : 3;

// A row of a thread's columns. Where an activation follows the norm, its derivative is taken of all of them at once.
template <class T, class Sum, class In, int kSize>
__device__ void add_row(const In& inputs, const Vector<T, kSize> (&row)[Sum::kInputs], Sum (&sums)[kSize]) {
  using A = Compute<T>;
  if constexpr (requires { inputs.activation; }) {
    A z[kSize], g[kSize];
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      z[i] = sums[i].before_activation(row[1][i]);
      if constexpr (Sum::kInputs > 2) z[i] += row[2][i];
      g[i] = row[0][i];
    }
    inputs.activation.differentiate(z, g);
#pragma unroll
    for (int i = 0; i < kSize; ++i) sums[i].add({g[i], row[1][i]});
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      A values[Sum::kInputs];
#pragma unroll
      for (int j = 0; j < Sum::kInputs; ++j) values[j] = row[j][i];
      sums[i].add(values);
    }
  }
}

// Sums of a thread's columns begin with the first tile, in which the first row stands for those that there are not.
template <class T, class Sum, int kSize, class Stage>
__device__ void start_sums(const Stage& stage, int rows, Vector<T, kSize> (&tile)[Sum::kTile][Sum::kInputs],
                           Sum (&sums)[kSize]) {
  using A = Compute<T>;
  A k[kSize][Sum::kCoefficients];
  stage.read(k);
#pragma unroll
  for (int t = 1; t < Sum::kTile; ++t) {
    if (t < rows) continue;
#pragma unroll
    for (int j = 0; j < Sum::kInputs; ++j) tile[t][j] = tile[0][j];
  }
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    A values[Sum::kInputs][Sum::kTile];
#pragma unroll
    for (int t = 0; t < Sum::kTile; ++t) {
#pragma unroll
      for (int j = 0; j < Sum::kInputs; ++j) values[j][t] = tile[t][j][i];
    }
    sums[i].start(k[i], values);
  }
}

// Adds the sums to the totals. Returns a bit for each column that must be counted again.
template <class Sum, int kSize>
__device__ unsigned take_sums(Sum (&sums)[kSize], const ColumnTotals<Sum::kSums, kSize>& totals) {
  unsigned again = 0;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    double taken[Sum::kSums];
    if (!sums[i].take(taken)) again |= 1u << i;
    totals.add(i, taken);
  }
  return again;
}

// Counts them again: `rows` of them, the first at `x`, `step` apart.
template <class T, class Sum, int kSize>
__device__ void recount(unsigned again, const T* x, int64_t step, int rows, const Sum (&sums)[kSize],
                        const ColumnTotals<Sum::kSums, kSize>& totals) {
#pragma unroll 1
  for (int i = 0; again >> i; ++i) {
    if (!(again >> i & 1)) continue;
    Sum sum;
#pragma unroll
    for (int c = 0; c < kSize; ++c) sum = c == i ? sums[c] : sum;
    double recounted[Sum::kSums] = {};
#pragma unroll 1
    for (int r = 0; r < rows; ++r) sum.recount({widen(__ldg(x + r * step + i))}, recounted);
    totals.add(i, recounted);
  }
}

// Makes the totals those about the shift that all threads agree on.
template <class T, class Sum, int kSize, class Stage>
__device__ void finish_sums(const Stage& stage, int rows, const Sum (&sums)[kSize],
                            const ColumnTotals<Sum::kSums, kSize>& totals) {
  Compute<T> k[kSize][Sum::kCoefficients];
  stage.read(k);
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    totals.change(i, [&](double (&of_column)[Sum::kSums]) { sums[i].finish(k[i], rows, of_column); });
  }
}

// partials[group][piece][slice] = the sums over slice blockIdx.y of the rows, and over those columns of a group that a
// block has: the group's pieces are those blocks, one after the other.
template <class T, class Sum, int kSize, class Matrix, class In, class Coefficients>
__global__ void __launch_bounds__(kSumColumnThreads, kSumColumnBlocks<Sum, kSize>)
    sum_columns_kernel(const Matrix columns, const int64_t slice_rows, const unsigned pieces, const In inputs,
                       const Coefficients coefficients, double* partials) {
  follow();
  constexpr int kTile = Sum::kTile, kBetween = kRowsBetween<T, kTile>;
  using A = Compute<T>;
  using Staged = ColumnCoefficients<A, kSize, Sum::kCoefficients>;
  using Totals = ColumnTotals<Sum::kSums, kSize>;
  SHARED_ARRAY(double, shared, Totals::kSharedValues);
  SHARED_ARRAY(uint4, staged, Staged::kSharedVectors);
  const ColumnPlace<kSize> place(columns, slice_rows, blockIdx.x, blockIdx.y);
  const Totals totals(shared);

  Vector<T, kSize> tile[kTile][Sum::kInputs];
  int done = 0;               // rows that have been added
  int64_t at = place.offset;  // of the row to be fetched next
  const auto fetch = [&] {
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      if (done + t < place.rows) inputs.fetch(at, tile[t]);
      at += place.step;
      opaque(at);  // not a register for each multiple of the step
    }
  };

  fetch();  // on its way with the coefficients
  Staged stage(staged);
  stage.template fetch<kSumColumnThreads>(
      place.first, columns.width, [&](int64_t column, A(&k)[Sum::kCoefficients], bool) {
        const int64_t channel = columns.channel_of(columns.group(column));
        coefficients(columns.sample(blockIdx.x) * columns.channels.value + channel, k);
      });
  totals.clear();
  __syncthreads();
  Sum sums[kSize];
  if (place.rows > 0) start_sums<T>(stage, place.rows, tile, sums);

  while (done < place.rows) {
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      if (done + t >= place.rows) continue;
      add_row<T>(inputs, tile[t], sums);
    }
    done += kTile;
    fetch();
    if (done % kBetween != 0 && done < place.rows) continue;

    const unsigned again = take_sums(sums, totals);
    if constexpr (Sum::kRecounts) {
      const int taken = (done - kTile) / kBetween * kBetween;  // before, of the rows
      const T* const x = inputs.arrays[0] + at - (done + kTile - taken) * place.step;
      recount(again, x, place.step, min(done, place.rows) - taken, sums, totals);
    }
  }

  if constexpr (Sum::kOwnShift) finish_sums<T>(stage, place.rows, sums, totals);
  totals.store(columns, place, pieces, partials);
}

}  // namespace normext::cuda
