// row.cuh -- a row in the registers of the threads that share it, and which threads those are.
#pragma once
#include "cuda/elements/parameters.cuh"
#include "cuda/elements/vec.cuh"

namespace normext::cuda {

// kLanes threads share a row. Blocks have at least 128 threads: fewer would leave an SM's places for warps empty.
template <int kLanes>
constexpr int kRowThreads = kLanes < 128 ? 128 : kLanes;

// kVec<T> elements of a row of U, which may be of a wider type: several vectors of U then.
template <class T, class U = T>
struct Elements {
  Pack<U> packs[kVec<T> / kVec<U>];

  __device__ Compute<U> operator[](int i) const { return packs[i / kVec<U>][i % kVec<U>]; }
  // Half types are widened anew, rather than kept: see opaque().
  __device__ void forget_widened() {
    if constexpr (sizeof(U) == 2) opaque(packs[0].words);
  }
};

// A vector of a row from a column on, zeros where the row has ended. If rows do not begin at 16 bytes, or are no
// multiple of them, the elements lie kStep apart: with as many threads side by side, all of them together have all.
// A step of 1 is for aligned ones only.
template <int kStep, class T, class Index>
__device__ Pack<T> load_row(const T* row, Index column, Index end, bool aligned) {
  if constexpr (kStep > 1) {
    if (!aligned) return Pack<T>::template gather<kStep>(row + column, end - column);
  }
  return column < end ? Pack<T>::load(row + column) : Pack<T>{};
}
template <class T, int kStep, class U, class Index>
__device__ Elements<T, U> load_elements(const U* row, Index column, Index end, bool aligned) {
  Elements<T, U> elements;
#pragma unroll
  for (int i = 0; i < kVec<T>; i += kVec<U>)
    elements.packs[i / kVec<U>] = load_row<kStep>(row, column + i * (aligned ? 1 : kStep), end, aligned);
  return elements;
}

// Stores as many values as likewise one or several vectors.
template <int kStep, class U, class Index, int kSize>
__device__ void store_row(U* row, Index column, Index end, bool aligned, const Compute<U> (&v)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; i += kVec<U>) {
    Compute<U> piece[kVec<U>];
#pragma unroll
    for (int k = 0; k < kVec<U>; ++k) piece[k] = v[i + k];
    const Index at = column + i * (aligned ? 1 : kStep);
    if (kStep > 1 && !aligned)
      scatter<kStep>(row + at, piece, end - at);
    else if (at < end)
      store_vector(row + at, piece);
  }
}

// kSize elements of weight or bias like those of a row, `otherwise` where there is none.
template <int kStep, class P, class Index, class A, int kSize>
__device__ void load_parameters(const P* parameters, Index column, Index end, bool aligned, A otherwise,
                                A (&out)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; i += kVec<P>) {
    Pack<P> pack;
    if (parameters) pack = load_row<kStep>(parameters, column + i * (aligned ? 1 : kStep), end, aligned);
#pragma unroll
    for (int k = 0; k < kVec<P>; ++k) out[i + k] = parameters ? pack[k] : otherwise;
  }
}
template <class T, int kStep = 1, class Index, class A, int kSize>
__device__ void load_parameters(const void* parameters, DType dtype, Index column, Index end, bool aligned, A otherwise,
                                A (&out)[kSize]) {
  with_parameter_type<T>(dtype, [&]<class P>(Type<P>) {
    load_parameters<kStep>(static_cast<const P*>(parameters), column, end, aligned, otherwise, out);
  });
}

// terms[0] becomes the sum of the first 2 * kHalf terms, pairwise: short sums round less. Recursive, since a loop over
// halves, whose machine code is the same, takes nvcc a fifth longer for a kernel.
template <int kHalf, class A, int kSize, int kCount>
__device__ void sum_halves(A (&terms)[kSize][kCount]) {
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) terms[i][k] += terms[i + kHalf][k];
  }
  if constexpr (kHalf > 1) sum_halves<kHalf / 2>(terms);
}
template <class A, int kSize, int kCount>
__device__ void sum_pairwise(A (&terms)[kSize][kCount]) {
  sum_halves<kSize / 2>(terms);
}

// Which row and which columns of it are a thread's: kVecs vectors, neighbouring threads' next to each other; or, where
// rows are not aligned, as many single elements. The blocks of a cluster have equal shares of the row, one behind the
// other.
template <class T, int kLanes, int kVecs, bool kCluster, bool kAligned>
class RowPart {
 public:
  static constexpr int kRows = kRowThreads<kLanes> / kLanes;  // of a block
  static constexpr int kStep = kAligned ? 1 : kLanes;         // columns from one element of a vector to the next

  __device__ explicit RowPart(int64_t columns) {
    const int all = static_cast<int>(columns), vectors = (all + kVec<T> - 1) / kVec<T>;
    const int share = kCluster ? (vectors + blocks() - 1) / blocks() * kVec<T> : all;
    first_ = rank() * share + lane() * (kAligned ? kVec<T> : 1);
    end_ = kCluster && rank() * share + share < all ? rank() * share + share : all;
  }

  __device__ int lane() const { return threadIdx.x % kLanes; }
  __device__ int row_of_block() const { return threadIdx.x / kLanes; }
  __device__ bool is_first_of_row() const { return lane() == 0 && rank() == 0; }
  __device__ unsigned block_of_row() const { return blockIdx.x / blocks(); }  // a cluster counts as one
  __device__ int64_t row() const { return int64_t{block_of_row()} * kRows + row_of_block(); }

  __device__ int column(int v, int i = 0) const { return first_ + v * (kLanes * kVec<T>)+i * kStep; }
  __device__ int end() const { return end_; }  // of the block's columns
  // Vectors of aligned rows are whole, or beyond the end.
  __device__ bool is_whole(int v) const { return column(v, kAligned ? 0 : kVec<T> - 1) < end_; }

  // All vectors are on their way before the first is needed.
  template <class U>
  __device__ void load(const U* row, Elements<T, U> (&elements)[kVecs]) const {
#pragma unroll
    for (int v = 0; v < kVecs; ++v) elements[v] = load(row, v);
  }
  template <class U>
  __device__ Elements<T, U> load(const U* row, int v) const {
    const U* const first = row + first_;  // the others are a constant away
    return load_elements<T, kStep>(first, v * (kLanes * kVec<T>), end_ - first_, kAligned);
  }

  template <class U>
  __device__ void store(U* row, int v, const Compute<T> (&values)[kVec<T>]) const {
    store_row<kStep>(row, column(v), end_, kAligned, values);
  }
  template <class U>
  __device__ void store(U* row, int v, const Elements<T, U>& elements) const {
    static_assert(kAligned);
    if (column(v) >= end_) return;
#pragma unroll
    for (int i = 0; i < kVec<T>; i += kVec<U>) store16(row + column(v) + i, elements.packs[i / kVec<U>].bits());
  }

 private:
  // Asked for anew rather than kept in registers.
  __device__ static int rank() { return kCluster ? cluster_rank() : 0; }
  __device__ static int blocks() { return kCluster ? cluster_size() : 1; }

  int first_, end_;
};

}  // namespace normext::cuda
