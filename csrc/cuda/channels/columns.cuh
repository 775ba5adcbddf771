// columns.cuh -- a matrix whose columns belong to channels, and how blocks share it: BatchNorm where the channels are
// innermost, [N, C] among it, and planes that are no multiple of a vector, where a row is a sample.
//
// A thread has a vector of columns and walks down the rows. Where the number of channels is no multiple of a vector,
// several pixels make one row. sum_columns.cuh and map_columns.cuh have the kernels.
#pragma once
#include <algorithm>

#include "cuda/elements/reduce.cuh"
#include "cuda/elements/vec.cuh"

namespace normext::cuda {

// n / divisor for n up to kMost, by a multiplication: divisions cost the device dear, so this is made on the host.
class Divisor {
 public:
  static constexpr int64_t kMost = 0x7fffffff;
  const int64_t value;

  explicit Divisor(int64_t divisor) : value(divisor) {
    while (int64_t{1} << log_ < divisor && log_ < 31) ++log_;
    factor_ = ((uint64_t{1} << (31 + log_)) + divisor - 1) / divisor;
  }
  __device__ int64_t divide(int64_t n) const { return static_cast<int64_t>((n * factor_) >> (31 + log_)); }
  __device__ int64_t divide_any(int64_t n) const { return n <= kMost ? divide(n) : n / value; }

 private:
  uint64_t factor_ = 0;
  unsigned log_ = 0;
};

// Column c is in group c / inner, of the channel of that number modulo the channels. There are at most Divisor::kMost
// of them, or as many as there are channels.
struct Columns {
  int64_t rows, width;  // the tensor, row after row
  Divisor channels, inner;

  __device__ int64_t group(int64_t column) const { return inner.value == 1 ? column : inner.divide(column); }
  __device__ int64_t channel_of(int64_t group) const {
    return group < channels.value ? group : group - channels.divide(group) * channels.value;
  }

  // Which block across block x of the grid is, and of which matrix: there is one.
  __device__ unsigned block_across(unsigned x) const { return x; }
  __device__ int64_t sample(unsigned) const { return 0; }
};

// The same of every sample of a batch, one behind the other, each with channels of its own. Blocks of a sample are
// neighbours along x.
struct ColumnsOfSamples : Columns {
  unsigned across;

  __device__ unsigned block_across(unsigned x) const { return x % across; }
  __device__ int64_t sample(unsigned x) const { return x / across; }
};

// Which columns and rows are a thread's, of a block that is number `block` of the grid across and `slice` down.
// blockDim.x threads, a power of two and at most a warp, have neighbouring vectors of a row, blockDim.y neighbouring
// rows.
template <int kSize>
struct ColumnPlace {
  int64_t first, column;  // the block's first column, the thread's
  int64_t offset, step;   // in the tensor, of the thread's first vector; from there to the next
  int rows;               // of the thread, blockDim.y apart

  template <class Matrix>
  __device__ ColumnPlace(const Matrix& columns, int64_t slice_rows, unsigned block, unsigned slice)
      : first(static_cast<int64_t>(columns.block_across(block)) * blockDim.x * kSize),
        column(first + threadIdx.x * kSize),
        step(columns.width * blockDim.y) {
    const int64_t row = slice * slice_rows + threadIdx.y;
    const auto of_slice = static_cast<int>(min(slice_rows, columns.rows - slice * slice_rows));
    offset = (columns.sample(block) * columns.rows + row) * columns.width + column;
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
