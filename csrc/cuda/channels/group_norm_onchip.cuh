// group_norm_onchip.cuh -- GroupNorm of planes where a sample's group fits on chip: each tensor is read once.
//
//   group_norm_forward_onchip_kernel   groups of up to 1280 KB, 160 KB without clusters
//   group_norm_backward_onchip_kernel  the same for both inputs together
//
// A group is contiguous. A block, or a cluster of them, each with an equal share, takes one, keeps it in shared memory
// and finds it there again when the sums of all are known.
#pragma once
#include "cuda/channels/column_sums.cuh"
#include "cuda/channels/group_norm.cuh"
#include "cuda/channels/maps.cuh"
#include "cuda/channels/stash.cuh"
#include "cuda/elements/plane_walk.cuh"
#include "cuda/elements/reduce.cuh"

namespace normext::cuda {

// How a group of channels, one plane behind the other, is looked at by vectors.
struct GroupPlanes {
  Divisor per_plane;  // vectors
  Groups groups;

  GroupPlanes(const ChannelNormShape& shape, int64_t of_group, int size)
      : per_plane(shape.plane / size), groups(shape.channels, of_group) {}
};

// Blocks that registers leave room for on an SM.
template <class T, int kThreads>
constexpr int kGroupBlocks = kThreads == 32    ? 16
                             : kThreads == 128 ? 5
                             : kThreads == 256 ? 2
                                               : 1;

// ------------------------------------------------------------------------------------------------ forward
template <class T, int kSize, int kThreads, bool kCluster>
__global__ void __launch_bounds__(kThreads, kGroupBlocks<T, kThreads>)
    group_norm_forward_onchip_kernel(const GroupNormForward op, const PlaneSlices slices, const GroupPlanes planes,
                                     const Activate<Compute<T>> activation) {
  using A = Compute<T>;
  using Group = GroupSum<double, 2, kThreads, kThreads, kCluster>;
  SHARED_ARRAY(double, exchange, Group::kSharedValues);
  DYNAMIC_SHARED(T, stashes);
  Group group_sum(exchange);
  Stash<T, kSize, kThreads> stash(stashes);

  const unsigned rank = kCluster ? cluster_rank() : 0;
  const int64_t group = blockIdx.x / slices.slices;
  const PlaneWalk<kSize, kThreads> walk(slices, group, rank);
  const T* const input = static_cast<const T*>(op.input);
  A shift[1];
  Shift<T>{input, nullptr, slices.plane}(group, shift);
  MomentSums<A> sum;
  sum_planes<T>(walk, Inputs<T, 1>{{input}}, sum, [&](const auto& v) { stash.push(v[0]); });
  const Moments moments = moments_on_chip<T, kSize>(sum, shift, stash, walk.left(), slices.inverse_count, group_sum);
  group_sum.leave();

  const double rstd = store_statistics<T>(op, group, moments, rank == 0 && threadIdx.x == 0);
  A of_ones[3];
  Normalize::coefficients(moments.mean, rstd, 1.0, 0.0, of_ones);
  const int64_t first = planes.groups.first_channel(group);
  T* const output = static_cast<T*>(op.output);
  int i = 0;
  for (auto at = walk; at.left() > 0; at.next()) {
    A y[kSize];
    stash.read(i++, y);
    const int64_t channel = first + planes.per_plane.divide(at.position() / kSize);
    const A weight = affine<T>(op.weight, op.param_dtype, channel, 1);
    const A bias = affine<T>(op.bias, op.param_dtype, channel, 0);
#pragma unroll
    for (int e = 0; e < kSize; ++e) y[e] = fma(Normalize::apply({y[e]}, of_ones), weight, bias);
    activation.apply(y);
    store_vector(output + at.offset(), y);
  }
  group_sum.finish();
}

// ------------------------------------------------------------------------------------------------ backward
// How the sums of a group's channels are taken: a piece at a time by some lanes of a warp, a power of two of them, of
// kTile vectors each. A plane is one piece, or several.
struct GroupPieces {
  static constexpr int kTile = 4;

  int log_lanes = 0, length;  // vectors
  Divisor of_plane;

  explicit GroupPieces(int64_t vectors_of_plane)
      : length(choose_length(vectors_of_plane)), of_plane((vectors_of_plane + length - 1) / length) {}

  // Of the channels that a share of so many vectors can reach into.
  int64_t most(int64_t share, int64_t vectors_of_plane, int64_t channels) const {
    return std::min(channels, (share + 2 * vectors_of_plane - 2) / vectors_of_plane) * of_plane.value;
  }

  __device__ int lanes() const { return 1 << log_lanes; }

 private:
  int choose_length(int64_t vectors) {
    while (1 << log_lanes < kWarpSize && kTile << log_lanes < vectors) ++log_lanes;
    return kTile << log_lanes;
  }
};

// A block's vectors of both inputs in shared memory, in order, and what a vector is made into.
template <class T, int kSize, int kThreads>
class GroupStash {
  using A = Compute<T>;

 public:
  __device__ GroupStash(T* shared, int64_t size) : dy_(shared), x_(shared + size) {}

  // A barrier must follow.
  __device__ void fetch(const T* dy, const T* x, int vectors) const {
    for (int v = threadIdx.x; v < vectors; v += kThreads) {
      if constexpr (kSize == 1) {
        dy_[v] = __ldg(dy + v);
        x_[v] = __ldg(x + v);
      } else {
        copy16_to_shared(dy_ + v * kSize, dy + v * kSize);
        copy16_to_shared(x_ + v * kSize, x + v * kSize);
      }
    }
    await_copies();
  }

  __device__ void read(int v, A (&out)[2][kSize]) const {
    if constexpr (kSize == 1) {
      out[0][0] = widen(dy_[v]);
      out[1][0] = widen(x_[v]);
    } else {
      const auto dy = Pack<T>::of_bits(*reinterpret_cast<const uint4*>(dy_ + v * kSize));
      const auto x = Pack<T>::of_bits(*reinterpret_cast<const uint4*>(x_ + v * kSize));
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        out[0][e] = dy[e];
        out[1][e] = x[e];
      }
    }
  }

 private:
  T *dy_, *x_;
};

// The sums of g, g * xhat and xhat over every `step`-th of a piece's vectors, which are so few that A can hold them.
template <class T, int kSize, class Stashed>
__device__ void sum_piece(const Stashed& stash, int begin, int end, int step, const Compute<T> (&k)[4],
                          const Activate<Compute<T>>& activation, double (&sums)[3]) {
  using A = Compute<T>;
  ActivatedColumnGradients<T, 2> sum;
  sum.start(k, {});
  for (int v = begin; v < end; v += step) {
    A in[2][kSize], z[kSize];
    stash.read(v, in);
#pragma unroll
    for (int e = 0; e < kSize; ++e) z[e] = sum.before_activation(in[1][e]);
    activation.differentiate(z, in[0]);
#pragma unroll
    for (int e = 0; e < kSize; ++e) sum.add({in[0][e], in[1][e]});
  }
  sum.take(sums);
}

// Which vectors of its group a block has, and which of its channels they reach into.
struct GroupShare {
  int begin, end, first, last;

  __device__ GroupShare(const PlaneSlices& slices, const GroupPlanes& planes, unsigned rank) {
    begin = static_cast<int>(min(slices.per_channel, rank * slices.per_slice));
    end = static_cast<int>(min(slices.per_channel, (rank + 1) * slices.per_slice));
    first = static_cast<int>(planes.per_plane.divide(begin));
    last = begin < end ? static_cast<int>(planes.per_plane.divide(end - 1)) : first - 1;
  }
  __device__ int vectors() const { return end - begin; }
  __device__ bool reaches(int channel) const { return first <= channel && channel <= last; }
};

// sums[channel, piece] of the channels that the share reaches into.
template <class T, int kSize, int kThreads, class Stashed>
__device__ void sum_pieces(const GroupNormBackward& op, int64_t first_channel, const Stashed& stash,
                           const GroupShare& share, int per_plane, const GroupPieces& how,
                           const Activate<Compute<T>>& activation, Compute<T> mean, Compute<T> rstd, double* sums_of) {
  using A = Compute<T>;
  const int of_plane = static_cast<int>(how.of_plane.value), pieces = (share.last - share.first + 1) * of_plane;
  const int lane = threadIdx.x & (how.lanes() - 1);
  for (int all = 0; all < pieces; all += kThreads >> how.log_lanes) {  // whole warps
    const int number = all + (threadIdx.x >> how.log_lanes);
    double sums[3] = {};
    if (number < pieces) {
      const int of = static_cast<int>(how.of_plane.divide(number)), channel = share.first + of;
      const int begin = channel * per_plane + (number - of * of_plane) * how.length;
      const int end = min(min(begin + how.length, (channel + 1) * per_plane), share.end);
      const A k[4] = {mean, rstd, affine<T>(op.weight, op.param_dtype, first_channel + channel, 1),
                      affine<T>(op.bias, op.param_dtype, first_channel + channel, 0)};
      sum_piece<T, kSize>(stash, max(begin, share.begin) - share.begin + lane, end - share.begin, how.lanes(), k,
                          activation, sums);
    }
    warp_sum_of(sums, how.lanes());
    if (number < pieces && lane == 0) {
#pragma unroll
      for (int s = 0; s < 3; ++s) sums_of[number * 3 + s] = sums[s];
    }
  }
}

// The sums of a channel's pieces take the place of those of the first; the group's of all channels, each by its weight,
// are added to `totals`. A thread has the same channels here and wherever else it asks for their sums.
template <class T, int kThreads>
__device__ void sum_channels(const GroupNormBackward& op, int64_t first_channel, const GroupShare& share, int channels,
                             int of_plane, double* sums_of, double (&totals)[3]) {
  for (int channel = threadIdx.x; channel < channels; channel += kThreads) {
    if (!share.reaches(channel)) continue;
    double* const at = sums_of + (channel - share.first) * of_plane * 3;
    for (int piece = 1; piece < of_plane; ++piece) {
#pragma unroll
      for (int s = 0; s < 3; ++s) at[s] += at[piece * 3 + s];
    }
    const double weight = parameter<T>(op.weight, op.param_dtype, first_channel + channel, 1);
    totals[0] = fma(weight, at[0], totals[0]);
    totals[1] = fma(weight, at[1], totals[1]);
    totals[2] += at[2];
  }
}

template <class T, int kSize, int kThreads, bool kCluster>
__global__ void __launch_bounds__(kThreads, kGroupBlocks<T, kThreads>)
    group_norm_backward_onchip_kernel(const GroupNormBackward op, const PlaneSlices slices, const GroupPlanes planes,
                                      const GroupPieces how, const int64_t stash_size,
                                      const Activate<Compute<T>> activation, double* const partials) {
  using A = Compute<T>;
  using Group = GroupSum<double, 3, kThreads, kThreads, kCluster>;
  SHARED_ARRAY(double, exchange, Group::kSharedValues);
  DYNAMIC_SHARED(T, shared);
  Group group_sum(exchange);
  const GroupStash<T, kSize, kThreads> stash(shared, stash_size);
  double* const sums_of = reinterpret_cast<double*>(shared + 2 * stash_size);

  const unsigned rank = kCluster ? cluster_rank() : 0;
  const int64_t group = blockIdx.x / slices.slices, first = planes.groups.first_channel(group);
  const int channels = static_cast<int>(planes.groups.per_group.value);
  const GroupShare share(slices, planes, rank);
  const int64_t start = group * slices.plane + static_cast<int64_t>(share.begin) * kSize;
  stash.fetch(static_cast<const T*>(op.grad_output) + start, static_cast<const T*>(op.input) + start, share.vectors());
  const A mean = static_cast<const A*>(op.mean)[group], rstd = static_cast<const A*>(op.rstd)[group];
  __syncthreads();
  sum_pieces<T, kSize, kThreads>(op, first, stash, share, static_cast<int>(planes.per_plane.value), how, activation,
                                 mean, rstd, sums_of);
  __syncthreads();
  const int of_plane = static_cast<int>(how.of_plane.value);
  double totals[3] = {};
  sum_channels<T, kThreads>(op, first, share, channels, of_plane, sums_of, totals);
  group_sum(totals);
  group_sum.leave();

  const auto gradient = GroupGradient::of(totals, slices.inverse_count);
  for (int channel = threadIdx.x; partials && channel < channels; channel += kThreads) {
    double g = 0, g_xhat = 0;  // where other blocks of the cluster have the channel
    if (share.reaches(channel)) {
      const double* const at = sums_of + (channel - share.first) * of_plane * 3;
      g = at[0];
      g_xhat = at[1] - gradient.offset * at[0];
    }
    double* const to = partials + ((group * channels + channel) * slices.slices + rank) * 2;
    to[0] = g;
    to[1] = g_xhat;
  }

  const ActivatedGradient<A, 2> map{activation};
  T* const grad_input = static_cast<T*>(op.grad_input) + start;
  A k[6] = {mean, rstd, 1, 0, static_cast<A>(gradient.slope), static_cast<A>(gradient.level)};
  for (int v = threadIdx.x; v < share.vectors(); v += kThreads) {
    A in[2][kSize], dx[kSize];
    stash.read(v, in);
    const int64_t channel = first + planes.per_plane.divide(share.begin + v);
    k[2] = affine<T>(op.weight, op.param_dtype, channel, 1);
    k[3] = affine<T>(op.bias, op.param_dtype, channel, 0);
    map.apply(in, [&](int) -> const auto& { return k; }, dx);
    store_vector(grad_input + v * kSize, dx);
  }
  group_sum.finish();
}

}  // namespace normext::cuda
