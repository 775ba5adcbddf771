// ring.cuh -- rows that come by bulk copies into a ring of stages in shared memory, several on their way while one is
// computed, and are read from there as often as they are needed. ring_launches.cuh says which, ring_forward.cuh and
// ring_backward.cuh what for.
//
// Bulk copies take no registers and no instructions but one thread's, so few threads keep much on its way. Rows that
// are not at multiples of 16 bytes have none.
#pragma once
#include "cuda/elements/launch.cuh"
#include "cuda/elements/reduce.cuh"
#include "cuda/rows/ring_launches.cuh"
#include "cuda/rows/ring_parts.cuh"
#include "cuda/rows/row_places.cuh"

namespace normext::cuda {

// An array whose rows come through a ring; or a null pointer.
template <class T>
struct RingArray {
  const T* rows;
  RowPlaces places;
};

// What comes through a ring: a row of each array together, or a part of it. And which rows are whose: every block, or
// cluster, has a first one for each stage. Those behind them are a fixed share of its own; or it draws them from a
// counter, one after the other.
template <class T, int kArrays>
struct RingPlan {
  RingArray<T> arrays[kArrays];
  int there;          // arrays that are not null
  int share;          // columns of a part
  int stages;         // of that many columns of each array
  unsigned groups;    // blocks, or clusters, that rows are shared out to
  unsigned* counter;  // null where every block knows its rows
};

// The stages of a block, which one of its threads fills; kDraws: there may be a counter.
template <class T, int kArrays, bool kCluster, bool kDraws>
class Ring {
 public:
  using Part = RingPart<kCluster>;

  // Of rows from `first` up to `end`; with arrays of kRingStages each.
  __device__ Ring(const RingPlan<T, kArrays>& plan, const Part& part, int64_t first, int64_t end, char* stages,
                  TransferBarrier* full, int64_t* rows)
      : plan_(plan), part_(part), next_(first + Part::group()), end_(end), stages_(stages), full_(full), rows_(rows) {}

  // By all threads; a barrier must follow.
  __device__ void start() {
    if (!is_filler()) return;
#pragma unroll 1
    for (int stage = 0; stage < plan_.stages; ++stage) barrier_init(full_ + stage, 1);
    fence_transfers();
#pragma unroll 1
    for (int stage = 0; stage < plan_.stages; ++stage, next_ += plan_.groups) fill(stage);
    if (draws()) draw();
  }

  // Waits for the row at hand, and says which it is: one too many if there are no more.
  __device__ int64_t await() const {
    barrier_wait(full_ + stage_, parity_);
    return rows_[stage_];
  }
  __device__ const T* values(int array) const { return place(stage_, array); }

  // Fills the stage of the row before the one at hand. By all threads, which have met since they were through with it.
  __device__ void refill() {
    if (previous_ < 0 || !is_filler()) return;
    fill(previous_);
    if (draws())
      draw();
    else
      next_ += plan_.groups;
  }

  // The row at hand is the next one from now on.
  __device__ void advance() {
    previous_ = stage_;
    if (++stage_ == plan_.stages) stage_ = 0, parity_ ^= 1;
  }

 private:
  __device__ static bool is_filler() { return threadIdx.x == blockDim.x - kWarpSize; }  // of a warp with least to do

  __device__ bool draws() const { return kDraws && plan_.counter; }

  __device__ T* place(int stage, int array) const {
    return reinterpret_cast<T*>(stages_) + (stage * plan_.there + array) * plan_.share;
  }

  // By the next row.
  __device__ void fill(int stage) {
    rows_[stage] = next_;
    if (next_ >= end_) return barrier_arrive(full_ + stage);
    const unsigned bytes = part_.columns * sizeof(T);
    barrier_arrive_expecting(full_ + stage, plan_.there * bytes);
#pragma unroll
    for (int a = 0; a < kArrays; ++a) {
      const RingArray<T>& from = plan_.arrays[a];
      if (from.rows) bulk_copy(place(stage, a), from.rows + from.places[next_] + part_.first, bytes, full_ + stage);
    }
  }
  // A row earlier than it is needed: it takes as long as a load.
  __device__ void draw() { next_ = int64_t{plan_.stages} * plan_.groups + take_next(plan_.counter); }

  const RingPlan<T, kArrays>& plan_;
  const Part& part_;
  int64_t next_, end_;
  char* stages_;
  TransferBarrier* full_;  // of each stage: its row has come
  int64_t* rows_;
  int stage_ = 0, previous_ = -1;
  unsigned parity_ = 0;
};

// The first column of vector v of a thread, of up to kRingVecs: neighbouring threads' are next to each other.
template <class T>
__device__ int ring_column(int v) {
  return (v * blockDim.x + threadIdx.x) * kVec<T>;
}

template <class T>
__device__ Pack<T> load_shared(const T* at) {
  return Pack<T>::of_bits(*reinterpret_cast<const uint4*>(at));
}

}  // namespace normext::cuda
