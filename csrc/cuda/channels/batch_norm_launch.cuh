// batch_norm_launch.cuh -- which kernels compute a BatchNorm, in which shape, and why.
#pragma once
#include "cuda/channels/batch_norm.cuh"
#include "cuda/channels/batch_norm_onchip.cuh"
#include "cuda/channels/layout.cuh"
#include "cuda/channels/map_columns.cuh"
#include "cuda/channels/planes.cuh"
#include "cuda/channels/sum_columns.cuh"
#include "cuda/elements/launch.cuh"

namespace normext::cuda {

// ------------------------------------------------------------------------------------------------ elementwise
// Planes shorter than this leave most of a block that goes through them waiting for addresses. Such a tensor is mapped
// as a matrix of samples, a vector of which may span two channels.
constexpr int64_t kShortPlane = 1024;
// As longer ones are that are no multiple of a vector, where there are rows enough for the threads of a block.
constexpr int64_t kFewSamples = kMapColumnThreads / kWarpSize;

template <class T, class Map, class Coefficients>
void launch_map(const ChannelNormShape& shape, Run& run, const InputsOf<T, Map>& inputs, void* output,
                const Coefficients& coefficients, bool aligned, const Map& map = {}) {
  T* const out = static_cast<T*>(output);
  const Columns columns = columns_of<T>(shape);
  const int of_columns = access_size<T>(columns.width, aligned), of_planes = access_size<T>(shape.plane, aligned);
  const bool as_samples =
      columns.width <= Divisor::kMost && (shape.plane < kShortPlane || (of_planes == 1 && shape.batch >= kFewSamples));
  if (channels_innermost(shape) || (as_samples && of_columns > 1)) {
    with_access_size<T>(columns.width, aligned, [&]<int kSize>() {
      const auto how = column_launch(columns, kSize, kMapColumnThreads, 4, kMapColumnBlocks<Map>, run.device.sm_count);
      run.launch(map_columns_kernel<T, Map, kSize, Columns, Coefficients>, {.grid = how.grid, .block = how.block},
                 columns, how.slice_rows, inputs, out, coefficients, map);
    });
  } else {
    with_access_size<T>(shape.plane, aligned, [&]<int kSize>() {
      launch_map_planes<T, Map, kSize>(planes_of(shape), run, inputs, out, coefficients, map);
    });
  }
}

// ------------------------------------------------------------------------------------------------ sums
// Planes that are no multiple of a vector, in samples that are, are summed as a matrix of samples too, in which a block
// has a few tiles of rows or more. Tensors with few bytes for each SM are left to the kernel that does all in one
// launch.
constexpr int64_t kManySamples = 16, kSmallShare = 32 << 10;

template <class T>
bool sums_by_columns(const ChannelNormShape& shape, bool aligned, int sm_count) {
  if (channels_innermost(shape)) return true;
  const int64_t sample = shape.channels * shape.plane, bytes = shape.batch * sample * static_cast<int64_t>(sizeof(T));
  return shape.batch >= kManySamples && bytes >= kSmallShare * sm_count && sample <= Divisor::kMost &&
         access_size<T>(shape.plane, aligned) == 1 && access_size<T>(sample, aligned) > 1;
}

template <class T, class Sum, class ColumnSum, class In, class Start>
Partials launch_sums(const ChannelNormShape& shape, Run& run, const In& inputs, const Start& start, bool aligned) {
  const double inverse_count = 1 / static_cast<double>(shape.batch * shape.plane);
  if (sums_by_columns<T>(shape, aligned, run.device.sm_count)) {
    const Columns columns = columns_of<T>(shape);
    return with_access_size<T>(columns.width, aligned, [&]<int kSize>() {
      const auto how = column_launch(columns, kSize, kSumColumnThreads, ColumnSum::kTile,
                                     kSumColumnBlocks<ColumnSum, kSize>, run.device.sm_count);
      const int64_t groups = columns.width / columns.inner.value, of_block = int64_t{how.block.x} * kSize;
      // The most blocks that a group's columns may be in.
      const auto pieces = static_cast<unsigned>((columns.inner.value + of_block - 2) / of_block + 1);
      const unsigned of_group = pieces * how.grid.y;
      double* const partials = run.take<double>(groups * of_group * Sum::kSums);
      run.launch(sum_columns_kernel<T, ColumnSum, kSize, Columns, In, Start>, {.grid = how.grid, .block = how.block},
                 columns, how.slice_rows, pieces, inputs, start, partials);
      return Partials{partials, shape.channels, groups / shape.channels, of_group, inverse_count};
    });
  }
  const Planes planes = planes_of(shape);
  const unsigned slices = plane_slices(planes, run.device.sm_count);
  double* const partials = with_access_size<T>(shape.plane, aligned, [&]<int kSize>() {
    return launch_sum_planes<T, Sum, kSize>(planes, slices, run, inputs, start);
  });
  return {partials, planes.channels, 1, slices, inverse_count};
}

// ------------------------------------------------------------------------------------------------ on chip
// How many blocks hold a channel together, with `arrays` stashes of it; 0 where none of the numbers will do.
struct OnChip {
  int threads, cluster;
  int64_t stash_size;  // elements
};

constexpr int64_t kLeastShare = 2 << 10;  // bytes of a channel that are worth a block of their own

// Blocks on one SM take turns: while some load, others sum and store. So the more of them share an SM the better, with
// what threads they need for loads enough to be on their way. The thresholds are what an H200 says.
template <class T>
OnChip on_chip(const ChannelNormShape& shape, const Device& device, int size, int arrays) {
  const Planes planes = planes_of(shape);
  const int most_blocks = device.has_clusters ? kMaxCluster : 1;
  const auto make = [&](int threads, int cluster) -> OnChip {
    return {threads, cluster, stash_elements(planes, size, threads, cluster)};
  };
  const auto bytes = [&](const OnChip& how) { return how.stash_size * arrays * static_cast<int64_t>(sizeof(T)); };
  const auto fits = [&](const OnChip& how, int64_t kilobytes = 1024 /* more than a block can have */) {
    return bytes(how) <= std::min<int64_t>(kilobytes << 10, device.max_shared_bytes - kExchangeBytes);
  };
  // Few channels: all of them at once, one block an SM.
  if (shape.channels <= device.sm_count) {
    const int64_t all = planes.elements() * arrays * static_cast<int64_t>(sizeof(T));
    int cluster = 1;
    while (2 * cluster <= most_blocks && 2 * cluster * shape.channels <= device.sm_count &&
           all >= 2 * cluster * kLeastShare)
      cluster *= 2;
    const OnChip how = make(all / cluster <= (26 << 10) ? 256 : 512, cluster);
    if (fits(how)) return how;
  }
  // A block a channel, four on an SM, or two.
  if (const OnChip how = make(128, 1); fits(how, 52) && 2 * shape.channels >= 7 * device.sm_count) return how;
  if (const OnChip how = make(256, 1); fits(how, 112)) return how;
  // Several blocks a channel: three on an SM, or two, or one.
  for (int cluster = 2; cluster <= most_blocks; cluster *= 2) {
    if (const OnChip how = make(256, cluster); fits(how, 74)) return how;
  }
  const int threads = sizeof(T) > 2 && arrays == 1 ? 512 : 256;  // half types, or two arrays, take more registers
  if (const OnChip how = make(threads, most_blocks); fits(how, 112)) return how;
  if (const OnChip how = make(512, most_blocks); fits(how, 160)) return how;
  return {};
}

// Launches Kernels::of<kSize, kThreads, kCluster>().
template <class T, class Kernels, class Op, class... Arguments>
void launch_on_chip(const Op& op, Run& run, const OnChip& how, int size, int arrays, const Arguments&... arguments) {
  const auto launch = [&]<int kSize>() {
    const PlaneSlices slices(planes_of(op.shape), kSize, how.threads, static_cast<unsigned>(how.cluster));
    const Launch config{.grid = grid_of(op.shape.channels * how.cluster),
                        .block = static_cast<unsigned>(how.threads),
                        .shared_bytes = static_cast<size_t>(how.stash_size * arrays) * sizeof(T),
                        .cluster = static_cast<unsigned>(how.cluster)};
    const auto with = [&]<int kThreads, bool kCluster>() {
      run.launch(Kernels::template of<kSize, kThreads, kCluster>(), config, op, slices, arguments...);
    };
    if (how.threads == 128) return with.template operator()<128, false>();
    if (how.threads == 256 && how.cluster == 1) return with.template operator()<256, false>();
    if (how.threads == 256) return with.template operator()<256, true>();
    if (how.cluster == 1) return with.template operator()<512, false>();
    with.template operator()<512, true>();
  };
  if (size > 1)
    launch.template operator()<kVec<T>>();
  else
    launch.template operator()<1>();
}

// ------------------------------------------------------------------------------------------------ forward
inline Launch finish_launch(int64_t channels) {
  return {.grid = grid_of(ceil_div(channels, kFinishChannels)), .block = kFinishThreads};
}

template <class T>
struct ForwardOnChip {
  template <int kSize, int kThreads, bool kCluster>
  static constexpr auto of() {
    return batch_norm_forward_onchip_kernel<T, kSize, kThreads, kCluster>;
  }
};

// Stores the statistics of the batch, and the coefficients that follow from them.
template <class T>
StoredCoefficients<Compute<T>, 3> launch_statistics(const BatchNormForward& op, Run& run, bool aligned) {
  using A = Compute<T>;
  const Inputs<T, 1> inputs{{static_cast<const T*>(op.input)}};
  const StoredCoefficients<A, 3> coefficients{run.take<A>(op.shape.channels * 3)};
  Shift<T> shift{inputs.arrays[0], nullptr, channels_innermost(op.shape) ? 1 : op.shape.plane};
  // float64 has nothing wider to be summed in: once more, about the mean.
  for (int pass = 0; pass < (std::is_same_v<T, double> ? 2 : 1); ++pass) {
    const Partials partials = launch_sums<T, MomentSums<A>, ColumnMoments<T>>(op.shape, run, inputs, shift, aligned);
    run.launch(finish_forward_kernel<T>, finish_launch(op.shape.channels), op, partials, shift, coefficients);
    shift.mean = static_cast<const A*>(op.found ? op.found : op.mean);
  }
  return coefficients;
}

// Sums as ever, and the rest in one map, also in evaluation.
template <class T>
void activated_forward(const BatchNormForward& op, Run& run) {
  using A = Compute<T>;
  const bool aligned = is_aligned(op.input, op.residual, op.output);
  ActivatedCoefficients<T> coefficients{{op}, {}};
  if (!op.running_mean && !op.given) coefficients.stored = launch_statistics<T>(op, run, aligned);
  launch_map<T>(op.shape, run, {{static_cast<const T*>(op.input), static_cast<const T*>(op.residual)}}, op.output,
                coefficients, aligned, ActivatedNormalize<A, 2>{Activate<A>(op.activation)});
}

template <class T>
void batch_norm_forward(const BatchNormForward& op, Run& run) {
  if (op.residual || op.activation.kind != Activation::Kind::none) return activated_forward<T>(op, run);
  const bool aligned = is_aligned(op.input, op.output);
  const Inputs<T, 1> inputs{{static_cast<const T*>(op.input)}};
  if (op.found) return static_cast<void>(launch_statistics<T>(op, run, is_aligned(op.input)));
  if (op.running_mean || op.given)
    return launch_map<T, Normalize>(op.shape, run, inputs, op.output, EvaluationCoefficients<T>{op}, aligned);

  const int size = access_size<T>(op.shape.plane, aligned);
  const OnChip how =
      sums_by_columns<T>(op.shape, aligned, run.device.sm_count) ? OnChip{} : on_chip<T>(op.shape, run.device, size, 1);
  if (how.cluster) return launch_on_chip<T, ForwardOnChip<T>>(op, run, how, size, 1);
  const auto coefficients = launch_statistics<T>(op, run, aligned);
  launch_map<T, Normalize>(op.shape, run, inputs, op.output, coefficients, aligned);
}

// ------------------------------------------------------------------------------------------------ backward
template <class T>
struct BackwardOnChip {
  template <int kSize, int kThreads, bool kCluster>
  static constexpr auto of() {
    return batch_norm_backward_onchip_kernel<T, kSize, kThreads, kCluster>;
  }
};

template <class T>
void activated_backward(const BatchNormBackward& op, Run& run) {
  using A = Compute<T>;
  const bool aligned = is_aligned(op.grad_output, op.input, op.residual, op.grad_input, op.grad_residual);
  const ActivatedInputs<T, 3> inputs{
      {{static_cast<const T*>(op.grad_output), static_cast<const T*>(op.input), static_cast<const T*>(op.residual)}},
      Activate<A>(op.activation)};
  const ActivatedStart<T> start{op};
  const StoredCoefficients<A, 5> coefficients{run.take<A>(op.shape.channels * 5)};
  if ((op.training && op.grad_input) || op.grad_weight || op.grad_bias) {
    const Partials partials = launch_sums<T, ActivatedGradientSums<A, 3>, ActivatedColumnGradients<T, 3>>(
        op.shape, run, inputs, start, aligned);
    run.launch(finish_backward_kernel<T>, finish_launch(op.shape.channels), op, partials, coefficients);
  }
  if (!op.grad_input && !op.grad_residual) return;
  launch_map<T>(op.shape, run, inputs, op.grad_input, ActivatedGradientCoefficients<T>{start, coefficients}, aligned,
                ActivatedGradients<T>{{inputs.activation}, static_cast<T*>(op.grad_residual)});
}

template <class T>
void batch_norm_backward(const BatchNormBackward& op, Run& run) {
  if (op.activation.kind != Activation::Kind::none) return activated_backward<T>(op, run);
  using A = Compute<T>;
  const bool aligned = is_aligned(op.grad_output, op.input, op.grad_input);
  const T *dy = static_cast<const T*>(op.grad_output), *x = static_cast<const T*>(op.input);
  const Inputs<T, 2> inputs{{dy, x}};

  if (op.training && op.grad_input && !op.given && !sums_by_columns<T>(op.shape, aligned, run.device.sm_count)) {
    const int size = access_size<T>(op.shape.plane, aligned);
    if (const OnChip how = on_chip<T>(op.shape, run.device, size, 2); how.cluster)
      return launch_on_chip<T, BackwardOnChip<T>>(op, run, how, size, 2, how.stash_size);
  }
  const StoredCoefficients<A, 5> coefficients{run.take<A>(op.shape.channels * 5)};
  if (op.training || op.grad_weight || op.grad_bias) {
    const SavedStatistics<A> statistics{static_cast<const A*>(op.mean), static_cast<const A*>(op.rstd)};
    const Partials partials =
        op.given ? Partials{}
                 : launch_sums<T, GradientSums<A>, ColumnGradients<T>>(op.shape, run, inputs, statistics, aligned);
    run.launch(finish_backward_kernel<T>, finish_launch(op.shape.channels), op, partials, coefficients);
  }
  if (!op.grad_input) return;
  if (op.training)
    launch_map<T, TrainingGradient>(op.shape, run, inputs, op.grad_input, coefficients, aligned);
  else
    launch_map<T, EvaluationGradient>(op.shape, run, Inputs<T, 1>{{dy}}, op.grad_input,
                                      EvaluationGradientCoefficients<T>{op}, aligned);
}

}  // namespace normext::cuda
