// row.cuh -- a row in the registers of the threads that share it, and which threads those are.
#pragma once
#include "misaligned.cuh"
#include "parameters.cuh"
#include "vec.cuh"

namespace normext::cuda {

// kLanes threads share a row. Blocks have at least 128 threads: fewer would leave an SM's places for warps empty.
template <int kLanes>
constexpr int kRowThreads = kLanes < 128 ? 128 : kLanes;

// A vector of a row, or zeros where the row has ended. `aligned`: rows begin at, and are a multiple of, 16 bytes.
template <class T, class Index>
__device__ Pack<T> load_row(const T* row, Index column, Index end, bool aligned) {
  if (!aligned) return load_misaligned(row, column, end);
  return column < end ? Pack<T>::load(row + column) : Pack<T>{};
}

template <class T, class Index>
__device__ void store_row(T* row, Index column, Index end, bool aligned, const Compute<T> (&v)[kVec<T>]) {
  if (!aligned)
    store_elements(row + column, v, end - column);
  else if (column < end)
    store_vector(row + column, v);
}

// kSize elements of weight or bias, `otherwise` where there is none.
template <class P, class Index, class A, int kSize>
__device__ void load_parameters(const P* parameters, Index column, Index end, bool aligned, A otherwise,
                                A (&out)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; i += kVec<P>) {
    Pack<P> pack;
    if (parameters) pack = load_row(parameters, column + i, end, aligned);
#pragma unroll
    for (int k = 0; k < kVec<P>; ++k) out[i + k] = parameters ? pack[k] : otherwise;
  }
}
template <class T, class Index, class A, int kSize>
__device__ void load_parameters(const void* parameters, DType dtype, Index column, Index end, bool aligned, A otherwise,
                                A (&out)[kSize]) {
  with_parameter_type<T>(dtype, [&]<class P>(Type<P>) {
    load_parameters(static_cast<const P*>(parameters), column, end, aligned, otherwise, out);
  });
}

// Which row and which columns of it are a thread's: kVecs vectors, neighbouring threads' next to each other. The blocks
// of a cluster have equal shares of the row, one behind the other.
template <class T, int kLanes, int kVecs, bool kCluster, int kThreads = kRowThreads<kLanes>>
class RowPart {
 public:
  static constexpr int kRows = kThreads / kLanes;   // of a block
  static constexpr int kStride = kLanes * kVec<T>;  // columns from one of a thread's vectors to the next

  __device__ explicit RowPart(int64_t columns) {
    const int all = static_cast<int>(columns), vectors = (all + kVec<T> - 1) / kVec<T>;
    const int share = kCluster ? (vectors + blocks() - 1) / blocks() * kVec<T> : all;
    first_ = rank() * share + lane() * kVec<T>;
    end_ = kCluster && rank() * share + share < all ? rank() * share + share : all;
  }

  __device__ int lane() const { return threadIdx.x % kLanes; }
  __device__ int row_of_block() const { return threadIdx.x / kLanes; }
  __device__ bool is_first_of_row() const { return lane() == 0 && rank() == 0; }
  __device__ int64_t block_of_row() const { return blockIdx.x / blocks(); }
  __device__ int64_t row() const { return block_of_row() * kRows + row_of_block(); }

  __device__ int column(int v) const { return first_ + v * kStride; }
  __device__ int end() const { return end_; }  // of the block's columns
  __device__ bool is_whole(int v) const { return column(v) + kVec<T> <= end_; }

  // All vectors are on their way before the first is needed.
  __device__ void load(const T* row, bool aligned, Pack<T> (&packs)[kVecs]) const {
    if (aligned) {
      const T* const first = row + first_;  // the others are a constant away
#pragma unroll
      for (int v = 0; v < kVecs; ++v) packs[v] = load_row(first, v * kStride, end_ - first_, true);
    } else {
#pragma unroll
      for (int v = 0; v < kVecs; ++v) packs[v] = load_row(row, column(v), end_, false);
    }
  }

  // By all threads, also those whose row does not exist.
  template <bool kAligned>
  __device__ void store(T* row, int v, bool exists, const Compute<T> (&values)[kVec<T>]) const {
    if constexpr (!kAligned)
      store_misaligned<kLanes>(row, column(v), exists ? end_ : 0, values);
    else if (exists)
      store_row(row, column(v), end_, true, values);
  }

 private:
  // Asked for anew rather than kept in registers.
  __device__ static int rank() { return kCluster ? cluster_rank() : 0; }
  __device__ static int blocks() { return kCluster ? cluster_size() : 1; }

  int first_, end_;
};

}  // namespace normext::cuda
