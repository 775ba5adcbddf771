// columns.cuh -- sums and elementwise maps over a matrix whose columns belong to channels: BatchNorm where the channels
// are innermost, [N, C] among it, and planes that are no multiple of a vector, where a row is a sample.
//
// A thread has a vector of columns and walks down the rows; the sums of a block's threads meet at the end. Where the
// number of channels is no multiple of a vector, several pixels make one row.
#pragma once
#include <algorithm>

#include "column_sums.cuh"
#include "planes.cuh"

namespace normext::cuda {

constexpr int kSumColumnThreads = 128, kMapColumnThreads = 256;

// n / divisor for n up to kMostColumns, by a multiplication: divisions cost the device dear, so this is made on the
// host.
class Divisor {
 public:
  const int64_t value;

  explicit Divisor(int64_t divisor) : value(divisor) {
    while (int64_t{1} << log_ < divisor && log_ < 31) ++log_;
    factor_ = ((uint64_t{1} << (31 + log_)) + divisor - 1) / divisor;
  }
  __device__ int64_t divide(int64_t n) const { return static_cast<int64_t>((n * factor_) >> (31 + log_)); }

 private:
  uint64_t factor_ = 0;
  unsigned log_ = 0;
};

constexpr int64_t kMostColumns = 0x7fffffff;

// Column c is in group c / inner, of the channel of that number modulo the channels. There are at most kMostColumns of
// them, or as many as there are channels.
struct Columns {
  int64_t rows, width;  // the tensor, row after row
  Divisor channels, inner;

  __device__ int64_t group(int64_t column) const { return inner.value == 1 ? column : inner.divide(column); }
  __device__ int64_t channel_of(int64_t group) const {
    return group < channels.value ? group : group - channels.divide(group) * channels.value;
  }
};

// Which columns and rows are a thread's, of a block that is number `block` of those across and `slice` of those down.
// blockDim.x threads, a power of two and at most a warp, have neighbouring vectors of a row, blockDim.y neighbouring
// rows.
template <int kSize>
struct ColumnPlace {
  int64_t first, column;  // the block's first column, the thread's
  int64_t offset, step;   // in the tensor, of the thread's first vector; from there to the next
  int rows;               // of the thread, blockDim.y apart

  __device__ ColumnPlace(const Columns& columns, int64_t slice_rows, unsigned block, unsigned slice)
      : first(static_cast<int64_t>(block) * blockDim.x * kSize),
        column(first + threadIdx.x * kSize),
        step(columns.width * blockDim.y) {
    const int64_t row = slice * slice_rows + threadIdx.y;
    const auto of_slice = static_cast<int>(min(slice_rows, columns.rows - slice * slice_rows));
    offset = row * columns.width + column;
    rows = column < columns.width ? (of_slice + blockDim.y - 1 - threadIdx.y) / blockDim.y : 0;
  }
};

// The coefficients of a block's columns: fetched once, all at a time, and handed out through shared memory.
template <class A, int kSize, int kCount>
class ColumnCoefficients {
  static constexpr int kColumns = kWarpSize * kSize;

 public:
  static constexpr int kSharedVectors = kCount * kColumns * sizeof(A) / 16;

  __device__ explicit ColumnCoefficients(uint4* shared) : shared_(reinterpret_cast<A*>(shared)) {}

  // get(column, k, mine) for every column, and for some that another thread has too; a barrier must follow.
  template <int kThreads, class Get>
  __device__ void fetch(int64_t first, int64_t width, const Get& get) {
    constexpr int kPerThread = (kColumns + kThreads - 1) / kThreads;
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, of_block = blockDim.x * kSize;
    A k[kPerThread][kCount];
#pragma unroll
    for (int p = 0; p < kPerThread; ++p) {  // without a branch, so that all loads are on their way together
      const int c = thread + p * kThreads;
      const int64_t column = min(first + c, width - 1);
      get(column, k[p], c < of_block && first + c == column);
    }
#pragma unroll
    for (int p = 0; p < kPerThread; ++p) {
      const int c = thread + p * kThreads;
      if (c >= of_block) continue;
#pragma unroll
      for (int j = 0; j < kCount; ++j) shared_[j * kColumns + c] = k[p][j];
    }
  }

  // Those of the thread's columns.
  __device__ void read(A (&k)[kSize][kCount]) const {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const A* const at = shared_ + j * kColumns + threadIdx.x * kSize;
      if constexpr (kSize == 1) {
        k[0][j] = *at;
      } else {
#pragma unroll
        for (int i = 0; i < kSize; i += kVec<A>) {
          const auto vector = Pack<A>::of_bits(*reinterpret_cast<const uint4*>(at + i));
#pragma unroll
          for (int e = 0; e < kVec<A>; ++e) k[i + e][j] = vector[e];
        }
      }
    }
  }

 private:
  A* shared_;
};

// Blocks that fit on an SM at once. What fills the registers are a tile of rows and the short sums of a vector's
// columns.
template <class Sum, int kSize>
constexpr int kSumColumnBlocks = kSize == 1                 ? 8
                                 : Sum::kSums * kSize == 16 ? 6
                                                            : 5;

// partials[group][piece][slice] = the sums over slice blockIdx.y of the rows, and over those columns of a group that a
// block has: the group's pieces are those blocks, one after the other.
template <class T, class Sum, int kSize, class Coefficients>
__global__ void __launch_bounds__(kSumColumnThreads, kSumColumnBlocks<Sum, kSize>)
    sum_columns_kernel(const Columns columns, const int64_t slice_rows, const unsigned pieces,
                       const Inputs<T, Sum::kInputs> inputs, const Coefficients coefficients, double* partials) {
  follow();
  constexpr int kTile = Sum::kTile, kSums = Sum::kSums, kBetween = kRowsBetween<T, kTile>;
  using A = Compute<T>;
  using Staged = ColumnCoefficients<A, kSize, Sum::kCoefficients>;
  SHARED_ARRAY(double, shared, kSums * kSize * kSumColumnThreads);
  SHARED_ARRAY(uint4, staged, Staged::kSharedVectors);
  const ColumnPlace<kSize> place(columns, slice_rows, blockIdx.x, blockIdx.y);
  const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
  // Of sum s over column i of thread t. A thread's own until the barrier.
  const auto total = [&](int s, int i, unsigned t) -> double& {
    return shared[(s * kSize + i) * kSumColumnThreads + t];
  };

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
  stage.template fetch<kSumColumnThreads>(place.first, columns.width,
                                          [&](int64_t column, A(&k)[Sum::kCoefficients], bool) {
                                            coefficients(columns.channel_of(columns.group(column)), k);
                                          });
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) total(s, i, thread) = 0;
  }
  __syncthreads();
  Sum sums[kSize];
  if (place.rows > 0) {
    A k[kSize][Sum::kCoefficients];
    stage.read(k);
#pragma unroll
    for (int t = 1; t < kTile; ++t) {
      if (t < place.rows) continue;
#pragma unroll
      for (int j = 0; j < Sum::kInputs; ++j) tile[t][j] = tile[0][j];
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      A values[Sum::kInputs][kTile];
#pragma unroll
      for (int t = 0; t < kTile; ++t) {
#pragma unroll
        for (int j = 0; j < Sum::kInputs; ++j) values[j][t] = tile[t][j][i];
      }
      sums[i].start(k[i], values);
    }
  }

  while (done < place.rows) {
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      if (done + t >= place.rows) continue;
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        A values[Sum::kInputs];
#pragma unroll
        for (int j = 0; j < Sum::kInputs; ++j) values[j] = tile[t][j][i];
        sums[i].add(values);
      }
    }
    done += kTile;
    fetch();
    if (done % kBetween != 0 && done < place.rows) continue;

    unsigned again = 0;  // a bit for each column
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      double taken_now[kSums];
      if (!sums[i].take(taken_now)) again |= 1u << i;
#pragma unroll
      for (int s = 0; s < kSums; ++s) total(s, i, thread) += taken_now[s];
    }
    if constexpr (Sum::kRecounts) {
      const int taken = (done - kTile) / kBetween * kBetween;  // before, of the rows
#pragma unroll 1
      for (int i = 0; again >> i; ++i) {
        if (!(again >> i & 1)) continue;
        Sum sum;
#pragma unroll
        for (int c = 0; c < kSize; ++c) sum = c == i ? sums[c] : sum;
        double recounted[kSums] = {};
#pragma unroll 1
        for (int r = taken; r < min(done, place.rows); ++r) {
          const int64_t row = at - (done + kTile - r) * place.step;
          sum.recount({widen(__ldg(inputs.arrays[0] + row + i))}, recounted);
        }
#pragma unroll
        for (int s = 0; s < kSums; ++s) total(s, i, thread) += recounted[s];
      }
    }
  }

  if constexpr (Sum::kOwnShift) {
    A k[kSize][Sum::kCoefficients];
    stage.read(k);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      double totals[kSums];
#pragma unroll
      for (int s = 0; s < kSums; ++s) totals[s] = total(s, i, thread);
      sums[i].finish(k[i], place.rows, totals);
#pragma unroll
      for (int s = 0; s < kSums; ++s) total(s, i, thread) = totals[s];
    }
  }
  __syncthreads();
  // The block's rows together, in fixed order.
  const auto store = [&](int64_t index, const double (&sum)[kSums]) {
#pragma unroll
    for (int s = 0; s < kSums; ++s) partials[(index * gridDim.y + blockIdx.y) * kSums + s] = sum[s];
  };
  for (int i = threadIdx.y; i < kSize; i += blockDim.y) {
    double sum[kSums] = {};
#pragma unroll 4
    for (unsigned y = 0; y < blockDim.y; ++y) {
#pragma unroll
      for (int s = 0; s < kSums; ++s) sum[s] += total(s, i, y * blockDim.x + threadIdx.x);
    }
    if (columns.inner.value > 1) {
#pragma unroll
      for (int s = 0; s < kSums; ++s) total(s, i, threadIdx.x) = sum[s];  // nobody else has read it
    } else if (place.column + i < columns.width) {
      store(place.column + i, sum);
    }
  }
  if (columns.inner.value == 1) return;

  // The block's columns of each group together: a warp a group.
  __syncthreads();
  const int64_t width = blockDim.x * kSize, end = min(place.first + width, columns.width);
  for (int64_t group = columns.group(place.first) + thread / kWarpSize; group * columns.inner.value < end;
       group += kSumColumnThreads / kWarpSize) {
    const int64_t group_begin = group * columns.inner.value, group_end = group_begin + columns.inner.value;
    const int begin = static_cast<int>(max(group_begin, place.first) - place.first);
    double sum[kSums] = {};
    for (int c = begin + thread % kWarpSize; c < min(group_end, end) - place.first; c += kWarpSize) {
#pragma unroll
      for (int s = 0; s < kSums; ++s) sum[s] += total(s, c % kSize, c / kSize);
    }
    warp_sum<kWarpSize>(sum);
    if (thread % kWarpSize != 0) continue;
    const int64_t piece = blockIdx.x - group_begin / width;
    store(group * pieces + piece, sum);
    // Groups that begin elsewhere in a block may have one piece less than others.
    if (group_end <= place.first + width && piece + 1 < pieces) store(group * pieces + piece + 1, {});
  }
}

template <class Map>
constexpr int kMapColumnBlocks = Map::kInputs == 1 ? 3 : 2;

// output = Map(inputs, k), with each column's channel's coefficients k. The last rows come first.
template <class T, class Map, int kSize, class Coefficients>
__global__ void __launch_bounds__(kMapColumnThreads, kMapColumnBlocks<Map>)
    map_columns_kernel(const Columns columns, const int64_t slice_rows, const Inputs<T, Map::kInputs> inputs, T* output,
                       const Coefficients coefficients) {
  follow();
  constexpr int kTile = 4;  // rows
  using A = Compute<T>;
  using Staged = ColumnCoefficients<A, kSize, Map::kCoefficients>;
  SHARED_ARRAY(uint4, staged, Staged::kSharedVectors);
  const unsigned slice = gridDim.y - 1 - blockIdx.y;
  const ColumnPlace<kSize> place(columns, slice_rows, gridDim.x - 1 - blockIdx.x, slice);
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
        coefficients(columns.channel_of(group), k, first);
      });
  __syncthreads();
  A k[kSize][Map::kCoefficients];
  stage.read(k);
  for (int done = 0; done < place.rows; done += kTile) {
    const int64_t at = place.offset + done * place.step;
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      if (done + t >= place.rows) continue;
      A wide[Map::kInputs][kSize], out[kSize];
      inputs.widen(tile[t], 0, wide);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        A x[Map::kInputs];
#pragma unroll
        for (int j = 0; j < Map::kInputs; ++j) x[j] = wide[j][i];
        out[i] = Map::apply(x, k[i]);
      }
      store_vector(output + at + t * place.step, out);
    }
    fetch(done + kTile);
  }
}

// ------------------------------------------------------------------------------------------------ launch configuration
struct ColumnLaunch {
  dim3 grid, block;    // slices along y: neighbouring blocks have neighbouring columns
  int64_t slice_rows;  // a multiple of block.y
};

// How many slices of the rows, at most `most`. Few: each block costs its start, its end, and the partial sums it
// leaves. Enough that the blocks fill half of the GPU at least, which holds `resident` for each SM at once; and more if
// that leaves less to do for the SM that has most. Where the blocks across are few, as many as the GPU holds.
inline int64_t count_slices(int64_t across, int64_t most, int64_t resident, int64_t sm_count) {
  const int64_t at_once = resident * sm_count;
  if (8 * across <= at_once) return std::min(at_once / across, most);
  const auto for_one_sm = [&](int64_t slices) { return (across * slices + sm_count - 1) / sm_count; };
  int64_t best = std::min((at_once / 2 + across - 1) / across, most);
  for (int64_t slices = best + 1; slices <= most && across * slices <= 4 * at_once; ++slices) {
    if (20 * for_one_sm(slices) * best < 19 * for_one_sm(best) * slices) best = slices;  // by a twentieth
  }
  return best;
}

// Neighbouring threads along a row as far as it goes; a tile of rows for each of them, if there are as many.
inline ColumnLaunch column_launch(const Columns& columns, int size, int threads, int tile, int resident, int sm_count) {
  unsigned x = 1;
  while (x < kWarpSize && x * size < columns.width) x *= 2;
  const unsigned y = threads / x;
  const int64_t across = (columns.width + int64_t{x} * size - 1) / (int64_t{x} * size);
  const int64_t slices = count_slices(across, (columns.rows + tile * y - 1) / (tile * y), resident, sm_count);
  const int64_t rows = ((columns.rows + slices - 1) / slices + y - 1) / y * y;
  return {dim3(static_cast<unsigned>(across), static_cast<unsigned>((columns.rows + rows - 1) / rows)), dim3(x, y),
          rows};
}

}  // namespace normext::cuda
