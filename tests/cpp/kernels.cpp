// kernels.cpp -- every op, dtype and choice of arguments over shapes on both sides of the kernels' thresholds, under
// all settings of a backend, without torch: for builds with sanitizers (test_sanitizers.py), which look for accesses
// outside the arrays, undefined behaviour and races. Values are checked too, so that it cannot pass by computing
// nothing.
//
// That it finds what it is for was tried with planted faults: see test_sanitizers.py.
#include <sstream>

#include "batch_parts.h"
#include "channel_norms.h"
#include "checks.h"
#include "row_kinds.h"

// There in a program with sanitizers only.
extern "C" [[gnu::weak]] void __sanitizer_set_death_callback(void (*callback)());

namespace normext::test {
namespace {

// What a caller may ask of the backward. Nobody asks for the gradient of a weight that is not there.
struct Wanted {
  bool has_weight, input, weight, bias, large;
  const char* name;
};
constexpr Wanted kWanted[] = {{true, true, true, true, true, "all gradients"},
                              {true, true, false, false, false, "grad_input"},
                              {true, false, true, true, true, "grad_weight, grad_bias"},
                              {true, false, true, false, false, "grad_weight"},
                              {true, false, false, true, false, "grad_bias"},
                              {false, true, false, false, true, "no weight, grad_input"},
                              {false, true, false, true, false, "no weight, grad_input, grad_bias"}};

struct Affine {
  bool weight, bias, large;
  const char* name;
};
constexpr Affine kAffine[] = {{true, true, true, "weight and bias"},
                              {true, false, false, "weight"},
                              {false, true, false, "bias"},
                              {false, false, true, "neither weight nor bias"}};

// Calls f(entry, arrays) for the entries of a table that a case of that many elements gets: large cases with both
// alignments, the others with one, in turn.
template <class Table, class F>
void for_arrays(const Table& table, int64_t elements, const F& f) {
  for (const auto& entry : table) {
    if ((elements >= kLarge && !entry.large) || skips_next()) continue;
    if (elements >= kLarge) f(entry, Arrays(cases, cases % 2 == 0));
    f(entry, Arrays(cases, cases % 2 == 1));
    ++cases;
  }
}

// A norm's forward: `make` puts the arrays into the op, `training` says that the statistics are the input's, which
// is of the order of `scale`.
template <class MakeOp>
void test_forward(const std::string& name, const Axes& axes, const DTypes& dtypes, bool training, double scale,
                  double weight_offset, const MakeOp& make) {
  for_arrays(kAffine, axes.elements, [&](const Affine& affine, Arrays arrays) {
    if (!axes.centered && !affine.weight && affine.bias) return;  // there is no bias: it would be the next case
    const DType statistics_type = statistics_dtype(dtypes.data);
    const Buffer input = arrays.in(dtypes.data, axes.elements, -scale, 3 * scale);
    std::optional<Buffer> weight, bias, running_mean, running_var;
    if (affine.weight) weight = arrays.in(dtypes.param, axes.affines, -2, 2);
    if (affine.bias && axes.centered) bias = arrays.in(dtypes.param, axes.affines, -2, 2);
    Statistics expected(axes.groups);
    if (training) {
      expected = statistics(axes, input, kEps);
    } else {
      running_mean = arrays.in(dtypes.param, axes.groups, -1, 1);
      running_var = arrays.in(dtypes.param, axes.groups, 0.5, 2);
      for (int64_t g = 0; g < axes.groups; ++g) {
        expected.mean.set(g, (*running_mean)[g], std::fabs((*running_mean)[g]));
        expected.var.set(g, (*running_var)[g], 0);
      }
      expected.set_from_var(kEps);
    }
    const double offset = affine.weight ? weight_offset : 0;
    const Expected want = forward(axes, input, expected, pointer(weight), offset, pointer(bias));
    Buffer output = arrays.out(dtypes.data, axes.elements), mean = arrays.out(statistics_type, axes.groups),
           rstd = arrays.out(statistics_type, axes.groups);
    std::optional<Buffer> var;  // stays null in evaluation, where it is not written
    if (training) var = arrays.out(statistics_type, axes.groups);
    const auto op = make(input.data(), data(weight), data(bias), data(running_mean), data(running_var), output.data(),
                         mean.data(), rstd.data(), data(var));
    run_everywhere(
        name + ", " + affine.name, axes.elements, op,
        [&] {
          output.forget(), mean.forget(), rstd.forget();
          forget(var);
        },
        [&] {
          if (axes.centered) compare("mean", mean, expected.mean, statistics_type);
          compare("rstd", rstd, expected.rstd, statistics_type);
          compare("output", output, want, statistics_type);
          if constexpr (requires { op.var; }) {
            if (var) compare("var", *var, expected.var, statistics_type);
          }
        });
  });
}

template <class MakeOp>
void test_backward(const std::string& name, const Axes& axes, const DTypes& dtypes, bool training, double weight_offset,
                   const MakeOp& make) {
  for_arrays(kWanted, axes.elements, [&](const Wanted& wanted, Arrays arrays) {
    const bool wants_bias = wanted.bias && axes.centered;
    if (!wanted.input && !wanted.weight && !wants_bias) return;
    const DType statistics_type = statistics_dtype(dtypes.data);
    const Buffer input = arrays.in(dtypes.data, axes.elements, -1, 3);
    const Buffer grad_output = arrays.in(dtypes.data, axes.elements, -1, 2);
    std::optional<Buffer> weight;
    if (wanted.has_weight) weight = arrays.in(dtypes.param, axes.affines, -2, 2);
    const Statistics saved = statistics(axes, input, kEps);
    const Buffer mean = arrays.copy(statistics_type, saved.mean.value);
    const Buffer rstd = arrays.copy(statistics_type, saved.rstd.value);
    const double offset = wanted.has_weight ? weight_offset : 0;
    const Gradients want = backward(axes, grad_output, input, mean, rstd, pointer(weight), offset, training);
    std::optional<Buffer> grad_input, grad_weight, grad_bias;
    if (wanted.input) grad_input = arrays.out(dtypes.data, axes.elements);
    if (wanted.weight) grad_weight = arrays.out(dtypes.param, axes.affines);
    if (wants_bias) grad_bias = arrays.out(dtypes.param, axes.affines);
    const auto op = make(grad_output.data(), input.data(), mean.data(), rstd.data(), data(weight), data(grad_input),
                         data(grad_weight), data(grad_bias));
    run_everywhere(
        name + ", " + wanted.name, axes.elements, op,
        [&] { forget(grad_input), forget(grad_weight), forget(grad_bias); },
        [&] {
          if (grad_input) compare("grad_input", *grad_input, want.input, statistics_type);
          if (grad_weight) compare("grad_weight", *grad_weight, want.weight, statistics_type);
          if (grad_bias) compare("grad_bias", *grad_bias, want.bias, statistics_type);
        });
  });
}

// ------------------------------------------------------------------------------------------------ row norms
struct RowNorm {
  RowStatistics statistics;
  double weight_offset;
  const char* name;
};
constexpr RowNorm kRowNorms[] = {{RowStatistics::centered, 0, "layer_norm"},
                                 {RowStatistics::uncentered, 0, "rms_norm"},
                                 {RowStatistics::uncentered, 1, "rms_norm with weight + 1"}};

Axes row_axes(const RowNorm& norm, int64_t rows, int64_t columns) {
  return {rows * columns, rows, columns, columns, 1, norm.statistics == RowStatistics::centered};
}

std::string text(const RowNorm& norm, const char* pass, int64_t rows, int64_t columns, const DTypes& t) {
  std::ostringstream what;
  what << norm.name << " " << pass << ", " << rows << " rows of " << columns << " " << t.name;
  return what.str();
}

void test_row_norm_forward(const RowNorm& norm, int64_t rows, int64_t columns, const DTypes& t, double scale) {
  const Axes axes = row_axes(norm, rows, columns);
  test_forward(text(norm, "forward", rows, columns, t) + " times " + std::to_string(scale), axes, t, true, scale,
               norm.weight_offset,
               [&](auto* input, auto* weight, auto* bias, auto*, auto*, auto* output, auto* mean, auto* rstd, auto*) {
                 return RowNormForward{.input = input,
                                       .residual = nullptr,
                                       .weight = weight,
                                       .bias = bias,
                                       .output = output,
                                       .sum = nullptr,
                                       .mean = axes.centered ? mean : nullptr,
                                       .rstd = rstd,
                                       .rows = rows,
                                       .columns = columns,
                                       .input_strides = {rows, 0, columns},
                                       .residual_strides = {rows, 0, columns},
                                       .lines = {rows, columns, columns},
                                       .eps = kEps,
                                       .weight_offset = weight ? norm.weight_offset : 0,
                                       .statistics = norm.statistics,
                                       .dtype = t.data,
                                       .sum_dtype = t.data,
                                       .param_dtype = t.param};
               });
}

void test_row_norm(const RowNorm& norm, const RowNormShape& shape) {
  const int64_t rows = shape.rows, columns = shape.columns;
  const Axes axes = row_axes(norm, rows, columns);
  if (!shape.every_norm && !axes.centered) return;
  // An offset is the same code with one addition: of many rows, of the longest, and of some others.
  if (norm.weight_offset != 0 && axes.elements < 10 * kLarge && (axes.elements >= kLarge || rows < 3)) return;
  for (const DTypes& t : kDTypes) {
    if (shape.size && shape.size != size_of(t.data)) continue;
    test_row_norm_forward(norm, rows, columns, t, 1);
    test_backward(text(norm, "backward", rows, columns, t), axes, t, true, norm.weight_offset,
                  [&](auto* grad_output, auto* input, auto* mean, auto* rstd, auto* weight, auto* grad_input,
                      auto* grad_weight, auto* grad_bias) {
                    return RowNormBackward{.grad_output = grad_output,
                                           .grad_sum = nullptr,
                                           .input = input,
                                           .mean = axes.centered ? mean : nullptr,
                                           .rstd = rstd,
                                           .weight = weight,
                                           .grad_input = grad_input,
                                           .grad_residual = nullptr,
                                           .grad_weight = grad_weight,
                                           .grad_bias = grad_bias,
                                           .rows = rows,
                                           .columns = columns,
                                           .grad_output_strides = {rows, 0, columns},
                                           .input_strides = {rows, 0, columns},
                                           .lines = {rows, columns, columns},
                                           .weight_offset = weight ? norm.weight_offset : 0,
                                           .statistics = norm.statistics,
                                           .dtype = t.data,
                                           .sum_dtype = t.data,
                                           .param_dtype = t.param};
                  });
  }
}

// ------------------------------------------------------------------------------------------------ BatchNorm
std::string text(const ChannelNormShape& shape, const DTypes& t, bool training) {
  std::ostringstream what;
  what << (training ? "training, " : "evaluation, ") << shape.batch << " x " << shape.channels << " channels x "
       << shape.plane << (shape.channels_last ? " channels last, " : ", ") << t.name;
  return what.str();
}

void test_batch_norm_forward(const ChannelNormShape& shape, const DTypes& t, bool training, double scale) {
  test_forward("batch_norm forward, " + text(shape, t, training) + " times " + std::to_string(scale), axes_of(shape), t,
               training, scale, 0,
               [&](auto* input, auto* weight, auto* bias, auto* running_mean, auto* running_var, auto* output,
                   auto* mean, auto* rstd, auto* var) {
                 return BatchNormForward{.input = input,
                                         .weight = weight,
                                         .bias = bias,
                                         .running_mean = running_mean,
                                         .running_var = running_var,
                                         .output = output,
                                         .mean = mean,
                                         .rstd = rstd,
                                         .var = var,
                                         .shape = shape,
                                         .eps = kEps,
                                         .dtype = t.data,
                                         .param_dtype = t.param};
               });
}

void test_batch_norm(const ChannelNormShape& shape) {
  const Axes axes = axes_of(shape);
  for (const DTypes& t : kDTypes) {
    for (const bool training : {true, false}) {
      if (!training && axes.elements >= kLarge) continue;  // it is training without its sums
      test_batch_norm_forward(shape, t, training, 1);
      test_backward("batch_norm backward, " + text(shape, t, training), axes, t, training, 0,
                    [&](auto* grad_output, auto* input, auto* mean, auto* rstd, auto* weight, auto* grad_input,
                        auto* grad_weight, auto* grad_bias) {
                      return BatchNormBackward{.grad_output = grad_output,
                                               .input = input,
                                               .mean = mean,
                                               .rstd = rstd,
                                               .weight = weight,
                                               .grad_input = grad_input,
                                               .grad_weight = grad_weight,
                                               .grad_bias = grad_bias,
                                               .shape = shape,
                                               .training = training,
                                               .dtype = t.data,
                                               .param_dtype = t.param};
                    });
    }
  }
}

// Values whose squares a kernel cannot add up as they are, and none but zeros.
void test_far_ranges() {
  for (const DTypes& t : kDTypes) {
    const double far = t.data == DType::float64 ? 1e150 : 1e17;
    for (const double scale : {far, 1 / far, 0.0}) {
      if (t.data == DType::float16 && scale != 0) continue;
      for (const int64_t columns : {5, 60, 100, 200, 300, 700, 1500, 2000, 3000, 6000, 12000, 20000, 20001})
        for (const RowNorm& norm : {kRowNorms[0], kRowNorms[1]}) test_row_norm_forward(norm, 1, columns, t, scale);
      for (const ChannelNormShape& shape : std::initializer_list<ChannelNormShape>{
               {3, 2, 50, false}, {3, 2, 8000, false}, {3, 2, 64, false}, {300, 5, 1, false}, {300, 8, 1, false}}) {
        test_batch_norm_forward(shape, t, true, scale);
      }
    }
  }
}

void test_batch_norm_update(int64_t channels, int64_t count) {
  const double momentum = 0.3;
  for (const DTypes& t : kDTypes) {
    if (t.param != t.data || skips_next()) continue;  // here the dtype is the running statistics'
    Arrays arrays(cases, cases % 2 == 1);
    ++cases;
    const DType statistics_type = statistics_dtype(t.data);
    const Buffer mean = arrays.in(statistics_type, channels, -1, 1);
    const Buffer var = arrays.in(statistics_type, channels, 0, 2);
    const Buffer old_mean = arrays.in(t.data, channels, -1, 1), old_var = arrays.in(t.data, channels, 0, 2);
    Buffer running_mean = arrays.out(t.data, channels), running_var = arrays.out(t.data, channels);
    Expected want_mean(channels), want_var(channels);
    const double unbiased = static_cast<double>(count) / static_cast<double>(count - 1);
    for (int64_t c = 0; c < channels; ++c) {
      want_mean.set(c, (1 - momentum) * old_mean[c] + momentum * mean[c], std::fabs(old_mean[c]) + std::fabs(mean[c]));
      want_var.set(c, (1 - momentum) * old_var[c] + momentum * var[c] * unbiased, old_var[c] + var[c] * unbiased);
    }
    const auto old = [&] {
      for (int64_t c = 0; c < channels; ++c) {
        running_mean.set(c, old_mean[c]);
        running_var.set(c, old_var[c]);
      }
    };
    const std::string what =
        "batch_norm update, " + std::to_string(channels) + " channels of " + std::to_string(count) + ", " + t.name;
    BatchNormUpdate op{mean.data(), var.data(), running_mean.data(), running_var.data(), channels, count,
                       momentum,    t.data};
    run_everywhere(what, channels, op, old, [&] {
      compare("running_mean", running_mean, want_mean, statistics_type);
      compare("running_var", running_var, want_var, statistics_type);
    });
    op.running_mean = nullptr;
    run_everywhere(what + ", running_var only", channels, op, old,
                   [&] { compare("running_var", running_var, want_var, statistics_type); });
    op.running_mean = running_mean.data();
    op.running_var = nullptr;
    run_everywhere(what + ", running_mean only", channels, op, old,
                   [&] { compare("running_mean", running_mean, want_mean, statistics_type); });
  }
}

}  // namespace
}  // namespace normext::test

int main(int argc, char** argv) {
  using namespace normext::test;
  if (argc > 1) only = argv[1];
  if (argc > 2) every = std::atoll(argv[2]);
  if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(print_current);
  for (const auto& shape : row_norm_shapes())
    for (const auto& norm : kRowNorms) test_row_norm(norm, shape);
  test_row_kinds();
  for (const auto& shape : batch_norm_shapes()) test_batch_norm(shape);
  test_channel_norms();
  test_batch_parts();
  test_far_ranges();
  for (const int64_t channels : {1, 3, 4, 7, 8, 9, 15, 16, 17, 33, 65, 257, 8193}) {
    for (const int64_t count : {2, 100}) test_batch_norm_update(channels, count);
  }
  std::printf("%lld cases, %lld runs, %lld results wrong\n", static_cast<long long>(cases),
              static_cast<long long>(runs), static_cast<long long>(wrong));
  return wrong ? 1 : 0;
}
