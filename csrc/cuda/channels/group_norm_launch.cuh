// group_norm_launch.cuh -- which kernels compute a GroupNorm, in which shape: group_norm_forward() and _backward().
//
//   planes, where a group fits on chip    one kernel (group_norm_onchip.cuh), as group_launches.cuh says
//   other planes                          sum_planes_kernel, group_norm_finish_*_kernel, map_planes_kernel
//   channels innermost (channels_last)    sum_columns_kernel, group_norm_finish_*_kernel, map_columns_kernel
//
// Backward, group_norm_parameters_kernel comes last.
#pragma once
#include "cuda/channels/group_launches.cuh"
#include "cuda/channels/group_norm.cuh"
#include "cuda/channels/group_norm_onchip.cuh"
#include "cuda/channels/layout.cuh"
#include "cuda/channels/map_columns.cuh"
#include "cuda/channels/planes.cuh"
#include "cuda/channels/sum_columns.cuh"
#include "cuda/elements/launch.cuh"

namespace normext::cuda {

// ------------------------------------------------------------------------------------------------ the shape of memory
// Everything of a sample is one matrix of pixels where the channels are innermost; planes lie one behind the other.
inline bool in_columns(const ChannelNormShape& shape) { return shape.channels_last && shape.plane > 1; }
inline Planes planes_of_samples(const ChannelNormShape& shape) {
  return {1, shape.batch * shape.channels, shape.plane};
}

// What is chosen for sums must not depend on the batch: they are cut as if so many samples shared the GPU.
constexpr int kSamplesAtOnce = 4;
constexpr int64_t kSliceVectors = 16 * kPlaneThreads;  // of a plane: four tiles for each thread

inline ChannelNormShape sample_of(const ChannelNormShape& shape) {
  return {1, shape.channels, shape.plane, shape.channels_last};
}
template <class Launched>
ColumnsOfSamples columns_of_samples(const Columns& columns, const Launched& how) {
  return {columns, how.grid.x};
}

// ------------------------------------------------------------------------------------------------ sums
// Sums per sample and channel.
template <class T, class Sum, class ColumnSum, class In, class Start>
ChannelPartials launch_channel_sums(const ChannelNormShape& shape, const Groups& groups, Run& run, const In& inputs,
                                    const Start& start, bool aligned) {
  const double inverse_count = 1 / static_cast<double>(shape.plane * groups.per_group.value);
  if (in_columns(shape)) {
    const Columns columns = columns_of<T>(sample_of(shape));
    return with_access_size<T>(columns.width, aligned, [&]<int kSize>() {
      auto how = column_launch(columns, kSize, kSumColumnThreads, ColumnSum::kTile, kSumColumnBlocks<ColumnSum, kSize>,
                               std::max(1, run.device.sm_count / kSamplesAtOnce));
      const auto samples = columns_of_samples(columns, how);
      double* const partials = run.take<double>(shape.batch * columns.width * how.grid.y * Sum::kSums);
      how.grid.x *= grid_of(shape.batch);
      run.launch(sum_columns_kernel<T, ColumnSum, kSize, ColumnsOfSamples, In, Start>,
                 {.grid = how.grid, .block = how.block}, samples, how.slice_rows, 1u, inputs, start, partials);
      return ChannelPartials{partials, groups, Divisor(columns.width / shape.channels), Divisor(how.grid.y),
                             inverse_count};
    });
  }
  const Planes planes = planes_of_samples(shape);
  const auto slices = static_cast<unsigned>(ceil_div(planes.plane, kSliceVectors * kVec<T>));
  double* const partials = with_access_size<T>(planes.plane, aligned, [&]<int kSize>() {
    return launch_sum_planes<T, Sum, kSize>(planes, slices, run, inputs, start);
  });
  return {partials, groups, Divisor(1), Divisor(slices), inverse_count};
}

// ------------------------------------------------------------------------------------------------ elementwise
template <class T, class Map, class Coefficients>
void launch_group_map(const ChannelNormShape& shape, Run& run, const InputsOf<T, Map>& inputs, void* output,
                      const Coefficients& coefficients, const Map& map, bool aligned) {
  T* const out = static_cast<T*>(output);
  if (in_columns(shape)) {
    const Columns columns = columns_of<T>(sample_of(shape));
    with_access_size<T>(columns.width, aligned, [&]<int kSize>() {
      const auto share = static_cast<int>(std::max<int64_t>(1, run.device.sm_count / shape.batch));
      auto how = column_launch(columns, kSize, kMapColumnThreads, 4, kMapColumnBlocks<Map>, share);
      const auto samples = columns_of_samples(columns, how);
      how.grid.x *= grid_of(shape.batch);
      run.launch(map_columns_kernel<T, Map, kSize, ColumnsOfSamples, Coefficients>,
                 {.grid = how.grid, .block = how.block}, samples, how.slice_rows, inputs, out, coefficients, map);
    });
  } else {
    with_access_size<T>(shape.plane, aligned, [&]<int kSize>() {
      launch_map_planes<T, Map, kSize>(planes_of_samples(shape), run, inputs, out, coefficients, map);
    });
  }
}

// ------------------------------------------------------------------------------------------------ on chip
// Calls launch<kSize, kThreads, kCluster>(planes, slices, config) for a group of planes that fits on chip: whether it
// does. shared_bytes(share, cluster) is what a block needs for so many vectors.
template <class T, int kSize, class Op, class Bytes, class F>
bool launch_group_on_chip(const Op& op, const Device& device, int arrays, const Bytes& shared_bytes, const F& launch) {
  const int64_t of_group = op.shape.channels / op.groups, elements = of_group * op.shape.plane;
  const Planes groups{1, op.shape.batch * op.groups, elements};
  return choose_group_launch<(kSize > 1)>(
      elements * arrays * static_cast<int64_t>(sizeof(T)), device.has_clusters, [&]<int kThreads, int kCluster>() {
        const PlaneSlices slices(groups, kSize, kThreads, kCluster);
        const auto bytes = static_cast<size_t>(shared_bytes(slices, kThreads));
        if (static_cast<int64_t>(bytes) > device.max_shared_bytes - kExchangeBytes) return false;
        constexpr bool kMeets = kCluster > 1;  // nvcc loses the parentheses of an expression among the arguments
        launch.template operator()<kThreads, kMeets>(GroupPlanes(op.shape, of_group, kSize), slices,
                                                     Launch{.grid = grid_of(groups.channels * kCluster),
                                                            .block = kThreads,
                                                            .shared_bytes = bytes,
                                                            .cluster = kCluster});
        return true;
      });
}

template <class T, int kSize>
bool group_norm_forward_on_chip(const GroupNormForward& op, Run& run) {
  const auto bytes = [&](const PlaneSlices& slices, int threads) {
    return ceil_div(slices.per_slice, threads) * threads * kSize * static_cast<int64_t>(sizeof(T));
  };
  return launch_group_on_chip<T, kSize>(
      op, run.device, 1, bytes,
      [&]<int kThreads, bool kCluster>(const GroupPlanes& planes, const PlaneSlices& slices, const Launch& how) {
        run.launch(group_norm_forward_onchip_kernel<T, kSize, kThreads, kCluster>, how, op, slices, planes,
                   Activate<Compute<T>>(op.activation));
      });
}

template <class T>
void launch_group_parameters(const GroupNormBackward& op, Run& run, const ChannelPartials& partials,
                             const GroupGradient* gradients) {
  const Launch how{.grid = grid_of(op.shape.channels), .block = kGroupFinishThreads};
  if (gradients)
    run.launch(group_norm_parameters_kernel<T, 3>, how, op, partials, gradients);
  else
    run.launch(group_norm_parameters_kernel<T, 2>, how, op, partials, gradients);
}

template <class T, int kSize>
bool group_norm_backward_on_chip(const GroupNormBackward& op, Run& run) {
  const GroupPieces pieces(op.shape.plane / kSize);
  const auto stash_size = [&](const PlaneSlices& slices) {
    return ceil_div(slices.per_slice * kSize, kVec<T>) * kVec<T>;
  };
  const auto bytes = [&](const PlaneSlices& slices, int) {
    return stash_size(slices) * 2 * static_cast<int64_t>(sizeof(T)) +
           pieces.most(slices.per_slice, op.shape.plane / kSize, op.shape.channels / op.groups) * 3 *
               static_cast<int64_t>(sizeof(double));
  };
  return launch_group_on_chip<T, kSize>(
      op, run.device, 2, bytes,
      [&]<int kThreads, bool kCluster>(const GroupPlanes& planes, const PlaneSlices& slices, const Launch& how) {
        const bool of_parameters = op.grad_weight || op.grad_bias;
        double* const partials =
            of_parameters ? run.take<double>(op.shape.batch * op.shape.channels * slices.slices * 2) : nullptr;
        run.launch(group_norm_backward_onchip_kernel<T, kSize, kThreads, kCluster>, how, op, slices, planes, pieces,
                   stash_size(slices), Activate<Compute<T>>(op.activation), partials);
        if (of_parameters)
          launch_group_parameters<T>(
              op, run, {partials, planes.groups, Divisor(1), Divisor(slices.slices), slices.inverse_count}, nullptr);
      });
}

// ------------------------------------------------------------------------------------------------ forward
template <class T>
void group_norm_forward(const GroupNormForward& op, Run& run) {
  using A = Compute<T>;
  const ChannelNormShape& shape = op.shape;
  const bool aligned = is_aligned(op.input, op.output);
  const auto on_chip = [&]<int kSize>() { return group_norm_forward_on_chip<T, kSize>(op, run); };
  if (!in_columns(shape) && with_access_size<T>(shape.plane, aligned, on_chip)) return;
  const Inputs<T, 1> inputs{{static_cast<const T*>(op.input)}};
  const Groups groups(shape.channels, shape.channels / op.groups);
  auto* const statistics = run.take<GroupStatistics>(shape.batch * op.groups);
  GroupShift<T> shift{inputs.arrays[0], nullptr, groups, shape.channels * shape.plane,
                      groups.per_group.value * (in_columns(shape) ? 1 : shape.plane)};
  // float64 has nothing wider to be summed in: once more, about the mean.
  for (int pass = 0; pass < (std::is_same_v<T, double> ? 2 : 1); ++pass) {
    const auto partials =
        launch_channel_sums<T, MomentSums<A>, ColumnMoments<T>>(shape, groups, run, inputs, shift, aligned);
    run.launch(group_norm_finish_forward_kernel<T>,
               {.grid = grid_of(shape.batch * op.groups), .block = kGroupFinishThreads}, op, partials, shift,
               statistics);
    shift.mean = static_cast<const A*>(op.mean);
  }
  launch_group_map(shape, run, inputs, op.output,
                   GroupCoefficients<T>{statistics, op.weight, op.bias, op.param_dtype, groups},
                   ActivatedNormalize<A, 1>{Activate<A>(op.activation)}, aligned);
}

// ------------------------------------------------------------------------------------------------ backward
template <class T>
ChannelPartials launch_gradient_sums(const GroupNormBackward& op, const Groups& groups, Run& run,
                                     const Inputs<T, 2>& inputs, bool aligned) {
  using A = Compute<T>;
  const GroupSaved<T> saved(op, groups);
  if (op.activation.kind == Activation::Kind::none)
    return launch_channel_sums<T, GradientSums<A>, ColumnGradients<T>>(op.shape, groups, run, inputs, saved, aligned);
  return launch_channel_sums<T, ActivatedGradientSums<A, 2>, ActivatedColumnGradients<T, 2>>(
      op.shape, groups, run, ActivatedInputs<T, 2>{inputs, Activate<A>(op.activation)}, saved, aligned);
}

template <class T>
void group_norm_backward(const GroupNormBackward& op, Run& run) {
  using A = Compute<T>;
  const ChannelNormShape& shape = op.shape;
  const bool aligned = is_aligned(op.grad_output, op.input, op.grad_input);
  const auto on_chip = [&]<int kSize>() { return group_norm_backward_on_chip<T, kSize>(op, run); };
  if (op.grad_input && !in_columns(shape) && with_access_size<T>(shape.plane, aligned, on_chip)) return;
  const Inputs<T, 2> inputs{{static_cast<const T*>(op.grad_output), static_cast<const T*>(op.input)}};
  const Groups groups(shape.channels, shape.channels / op.groups);
  auto* const gradients = run.take<GroupGradient>(shape.batch * op.groups);
  const auto partials = launch_gradient_sums<T>(op, groups, run, inputs, aligned);
  run.launch(group_norm_finish_backward_kernel<T>,
             {.grid = grid_of(shape.batch * op.groups), .block = kGroupFinishThreads}, op, partials, gradients);
  if (op.grad_input)
    launch_group_map(shape, run, inputs, op.grad_input,
                     GroupGradientCoefficients<T>{GroupSaved<T>(op, groups), gradients},
                     ActivatedGradient<A, 2>{Activate<A>(op.activation)}, aligned);
  if (op.grad_weight || op.grad_bias) launch_group_parameters<T>(op, run, partials, gradients);
}

}  // namespace normext::cuda
