// row.cuh -- a row in the registers of the threads that share it, and which threads those are.
#pragma once
#include "ops/types.h"
#include "vec.cuh"

namespace normext::cuda {

// kLanes threads share a row. Blocks have at least 128 threads: fewer would leave an SM's places for warps empty.
template <int kLanes>
constexpr int kRowThreads = kLanes < 128 ? 128 : kLanes;

// A vector of a row, or zeros where the row has ended. `aligned`: rows begin at, and are a multiple of, 16 bytes.
template <class T, class Index>
__device__ Pack<T> load_row(const T* row, Index column, Index end, bool aligned) {
  if (!aligned) return Pack<T>::load(row + column, end - column);
  return column < end ? Pack<T>::load(row + column) : Pack<T>{};
}

template <class T, class Index>
__device__ void store_row(T* row, Index column, Index end, bool aligned, const Compute<T> (&v)[kVec<T>]) {
  if (!aligned)
    store_elements(row + column, v, end - column);
  else if (column < end)
    store_vector(row + column, v);
}

// kVec<T> elements of weight or bias, `otherwise` where there is none. Half rows may have float32 parameters.
template <class T, class Index, class A>
__device__ void load_parameters(const void* parameters, DType dtype, Index column, Index end, bool aligned, A otherwise,
                                A (&out)[kVec<T>]) {
  const auto load = [&]<class P>(const P* p) {
#pragma unroll
    for (int i = 0; i < kVec<T>; i += kVec<P>) {
      const auto pack = load_row(p, column + i, end, aligned);
#pragma unroll
      for (int k = 0; k < kVec<P>; ++k) out[i + k] = pack[k];
    }
  };
  if (!parameters) {
#pragma unroll
    for (int i = 0; i < kVec<T>; ++i) out[i] = otherwise;
  } else if (sizeof(T) == 2 && dtype == DType::float32) {
    if constexpr (sizeof(T) == 2) load(static_cast<const float*>(parameters));
  } else {
    load(static_cast<const T*>(parameters));
  }
}

// Which row and which columns of it are a thread's: kVecs vectors, neighbouring threads' next to each other. The blocks
// of a cluster have equal shares of the row, one behind the other.
template <class T, int kLanes, int kVecs, bool kCluster>
class RowPart {
 public:
  static constexpr int kRows = kRowThreads<kLanes> / kLanes;  // of a block

  __device__ explicit RowPart(int64_t columns)
      : rank_(kCluster ? cluster_rank() : 0), blocks_(kCluster ? cluster_size() : 1) {
    const int all = static_cast<int>(columns), vectors = (all + kVec<T> - 1) / kVec<T>;
    const int share = kCluster ? (vectors + blocks_ - 1) / blocks_ * kVec<T> : all;
    first_ = rank_ * share + lane() * kVec<T>;
    end_ = kCluster && rank_ * share + share < all ? rank_ * share + share : all;
  }

  __device__ int lane() const { return threadIdx.x % kLanes; }
  __device__ int row_of_block() const { return threadIdx.x / kLanes; }
  __device__ bool is_first_of_row() const { return lane() == 0 && rank_ == 0; }
  __device__ int64_t block_of_row() const { return blockIdx.x / blocks_; }
  __device__ int64_t row() const { return block_of_row() * kRows + row_of_block(); }
  __device__ int64_t row_step() const { return static_cast<int64_t>(gridDim.x / blocks_) * kRows; }

  __device__ int column(int v) const { return first_ + v * kLanes * kVec<T>; }
  __device__ int end() const { return end_; }  // of the block's columns
  __device__ bool is_whole(int v) const { return column(v) + kVec<T> <= end_; }

  // All vectors are on their way before the first is needed.
  __device__ void load(const T* row, bool aligned, Pack<T> (&packs)[kVecs]) const {
    if (aligned) {
#pragma unroll
      for (int v = 0; v < kVecs; ++v) packs[v] = load_row(row, column(v), end_, true);
    } else {
#pragma unroll
      for (int v = 0; v < kVecs; ++v) packs[v] = load_row(row, column(v), end_, false);
    }
  }

 private:
  int rank_, blocks_, first_, end_;
};

}  // namespace normext::cuda
