// plane_walk.cuh -- channels of [batch, channels, plane] cut into slices, how a block's threads walk down one, and what
// they sum on their way.
//
// A channel is `batch` planes; a block takes a slice of it. Vectors do not cross the end of a plane: with kSize of
// kVec<T> planes are a multiple of it, and aligned; with kSize of 1 they are anything.
// A long row (row_norm_long.cuh) is a channel of one plane.
#pragma once
#include "cuda/elements/vec.cuh"

namespace normext::cuda {

constexpr int kPlaneThreads = 256;

struct Planes {
  int64_t batch, channels, plane;

  int64_t elements() const { return batch * plane; }  // of a channel
};

// How channels are cut into slices. Made on the host: divisions cost the device dear.
struct PlaneSlices {
  int64_t plane, sample;                      // elements: of a plane, and of those of all channels
  int64_t per_channel, per_slice, per_plane;  // vectors
  int64_t step_samples, step_in_plane;        // from a thread's vector to its next: whole planes, and vectors
  unsigned slices;
  double inverse_count;  // of a channel's values

  PlaneSlices(const Planes& planes, int size, int threads, unsigned count)
      : plane(planes.plane),
        sample(planes.channels * planes.plane),
        per_channel(planes.elements() / size),
        per_slice((per_channel + count - 1) / count),
        per_plane(planes.plane / size),
        step_samples(threads / per_plane),
        step_in_plane(threads % per_plane),
        slices(count),
        inverse_count(1 / static_cast<double>(planes.elements())) {}
};

// The vectors of a thread: every kThreads-th from the one it begins with, as the threads of a block do side by side.
template <int kSize, int kThreads>
class PlaneWalk {
 public:
  __device__ PlaneWalk(const PlaneSlices& in, int64_t channel, int64_t slice) : in_(in) {
    const int64_t begin = slice * in.per_slice + threadIdx.x;
    const int64_t end = min(in.per_channel, (slice + 1) * in.per_slice);
    left_ = end <= begin ? 0 : static_cast<int>((end - begin + kThreads - 1) / kThreads);
    in_plane_ = begin % in.per_plane;
    start_ = begin / in.per_plane * in.sample + channel * in.plane;
  }

  __device__ int left() const { return left_; }
  __device__ int64_t position() const { return in_plane_ * kSize; }  // in the plane
  __device__ int64_t offset() const { return start_ + position(); }  // in the tensor
  __device__ void next() {
    --left_;
    start_ += in_.step_samples * in_.sample;
    in_plane_ += in_.step_in_plane;
    if (in_plane_ >= in_.per_plane) {
      in_plane_ -= in_.per_plane;
      start_ += in_.sample;
    }
  }

 private:
  const PlaneSlices& in_;
  int left_;
  int64_t in_plane_, start_;
};

// What a sum or a map reads: one array or several, of which the last may be null, for zeros, if that is `optional`.
// First a tile of vectors is fetched, so that all its loads are on their way, then they are widened.
template <class T, int kCount, bool kOptional = false>
struct Inputs {
  const T* arrays[kCount];

  template <class V>
  __device__ void fetch(int64_t offset, V (&out)[kCount]) const {
#pragma unroll
    for (int k = 0; k < kCount; ++k) out[k] = is_there(k) ? V::load(arrays[k] + offset) : V{};
  }
  template <class V, int kSize>
  __device__ void widen(const V (&in)[kCount], int64_t, Compute<T> (&out)[kCount][kSize]) const {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) out[k][i] = in[k][i];
    }
  }

 private:
  __device__ bool is_there(int k) const { return !kOptional || k + 1 < kCount || arrays[k]; }
};

// One block's share of a channel's sums. keep(vectors) gets what has been fetched, in the walk's order.
template <class T, class Sum, int kSize, int kThreads, class In, class Keep>
__device__ void sum_planes(PlaneWalk<kSize, kThreads> walk, const In& inputs, Sum& sum, const Keep& keep) {
  constexpr int kInputs = Sum::kInputs, kTile = kSize == 1 ? 8 : kInputs < 3 ? 4 : 2;  // vectors
  using A = Compute<T>;
  while (walk.left() > 0) {
    Vector<T, kSize> tile[kTile][kInputs] = {};
    int64_t positions[kTile] = {};
    const int count = min(walk.left(), kTile);
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      if (t >= count) continue;
      inputs.fetch(walk.offset(), tile[t]);
      positions[t] = walk.position();
      walk.next();
    }
    A values[kInputs][kTile * kSize];
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      if (t < count) keep(tile[t]);
      A wide[kInputs][kSize];
      inputs.widen(tile[t], positions[t], wide);
#pragma unroll
      for (int k = 0; k < kInputs; ++k) {
#pragma unroll
        for (int i = 0; i < kSize; ++i) values[k][t * kSize + i] = wide[k][i];
      }
    }
    if constexpr (requires { inputs.activation; }) sum.activate(inputs.activation, values);
    if (count == kTile)  // for the compiler, which drops the tests for each element
      sum.add(values, kTile * kSize);
    else
      sum.add(values, count * kSize);
  }
}

}  // namespace normext::cuda
