// row_kinds.h -- what row norms take beside contiguous rows and one line of parameters: rows in strides, a residual,
// lines of scale and shift for samples or tokens, together and apart.
#pragma once
#include "checks.h"

namespace normext::test {

enum class Residual : uint8_t { none, same, wide };  // wide: float32 beside a half input

// How rows lie: one after another; parts of longer ones; two heads of every token of a fused projection, or these
// transposed, all tokens of one head after those of the other; or heads of which each begins at a vector.
enum class Layout : uint8_t { dense, slices, heads, transposed, aligned_heads };

struct RowKind {
  RowStatistics statistics;
  double weight_offset;
  Residual residual;
  bool grad_sum;
  int64_t rows_per_line;  // 0: all of them
  bool bias;
  Layout layout;
  const char* name;
};
constexpr auto kCentered = RowStatistics::centered, kUncentered = RowStatistics::uncentered;
// clang-format off
constexpr RowKind kRowKinds[] = {
    {kCentered, 0, Residual::none, false, 0, true, Layout::heads, "layer_norm of heads"},
    {kUncentered, 0, Residual::none, false, 0, false, Layout::transposed, "rms_norm of transposed heads"},
    {kUncentered, 1, Residual::same, true, 0, false, Layout::dense, "add_rms_norm"},
    {kCentered, 0, Residual::same, false, 0, true, Layout::slices, "add_layer_norm of slices, without grad_sum"},
    {kCentered, 0, Residual::wide, true, 0, true, Layout::slices, "add_layer_norm of slices, float32 residual"},
    {kUncentered, 0, Residual::wide, false, 0, false, Layout::dense, "add_rms_norm, float32 residual, without grad_sum"},
    {kCentered, 1, Residual::none, false, 1, true, Layout::dense, "adaptive_layer_norm per token"},
    {kUncentered, 1, Residual::none, false, 1, false, Layout::slices, "adaptive_rms_norm of slices per token"},
    {kCentered, 1, Residual::none, false, 6, true, Layout::slices, "adaptive_layer_norm of slices per sample"},
    {kUncentered, 1, Residual::none, false, 6, true, Layout::dense, "adaptive_rms_norm with shift per sample"},
    {kCentered, 1, Residual::wide, true, 6, true, Layout::heads, "all of it"}};
// clang-format on

inline RowStrides strides_of(Layout layout, int64_t rows, int64_t columns) {
  const int64_t odd = columns + 3;
  switch (layout) {
    case Layout::dense:
      return {rows, 0, columns};
    case Layout::slices:
      return {rows, 0, odd};
    case Layout::heads:
      return {2, 3 * 2 * odd + 1, odd};
    case Layout::aligned_heads:
      return {2, 3 * 2 * (columns + 8), columns + 8};
    default:
      return {rows / 2, odd, 2 * odd};
  }
}

// A number rounded to a dtype, to nearest, by way of float32 as the kernels have it.
inline double rounded(double value, DType dtype) {
  if (dtype == DType::float64) return value;
  const double single = static_cast<float>(value);
  if (dtype == DType::float32 || single == 0) return single;
  const double least = dtype == DType::float16 ? 0x1p-24 : 0x1p-133;  // between subnormal numbers
  const double spacing = std::max(least, 2 * unit(dtype) * std::exp2(std::floor(std::log2(std::fabs(single)))));
  return std::nearbyint(single / spacing) * spacing;
}

class RowKindCase {
 public:
  RowKindCase(const RowKind& kind, int64_t rows, int64_t columns, const DTypes& dtypes, bool shifted)
      : kind_(kind),
        rows_(rows),
        columns_(columns),
        t_(dtypes),
        arrays_(cases, shifted),
        strides_(strides_of(kind.layout, rows, columns)),
        lines_{kind.rows_per_line ? kind.rows_per_line : rows, 2 * columns + 1, columns + 2},
        sum_type_(kind.residual == Residual::wide ? DType::float32 : dtypes.data),
        statistics_type_(statistics_dtype(dtypes.data)) {
    axes_ = {rows * columns, rows, columns, columns, 1, kind.statistics == kCentered, rows / lines_.rows_per_line};
    axes_.affines *= axes_.lines;
    ++cases;
  }

  void test() {
    weight_ = arrays_.in(t_.param, axes_.affines, -2, 2);
    if (kind_.bias) bias_ = arrays_.in(t_.param, axes_.affines, -2, 2);
    const Buffer weight = in_lines(*weight_, lines_.weight_stride);
    std::optional<Buffer> bias;
    if (bias_) bias = in_lines(*bias_, lines_.bias_stride);
    test_forward(weight, bias);
    test_backward(weight);
  }

 private:
  // What an array holds, in strides; NaN in between, which no kernel should look at.
  Buffer placed(const Buffer& dense, int64_t length, const RowStrides& strides) const {
    const auto begin = [&](int64_t r) {
      return r / strides.inner * strides.outer_stride + r % strides.inner * strides.inner_stride;
    };
    int64_t end = 0;
    const int64_t rows = dense.size() / length;
    for (int64_t r = 0; r < rows; ++r) end = std::max(end, begin(r) + length);
    Buffer out = arrays_.out(dense.dtype(), end);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < length; ++c) out.set(begin(r) + c, dense[r * length + c]);
    return out;
  }
  Buffer in_strides(const Buffer& dense) const { return placed(dense, columns_, strides_); }
  Buffer in_lines(const Buffer& dense, int64_t stride) const {
    return placed(dense, columns_, {axes_.lines, 0, stride});
  }

  std::string name(const char* pass) const {
    return std::string(kind_.name) + " " + pass + ", " + std::to_string(rows_) + " rows of " +
           std::to_string(columns_) + ", " + t_.name;
  }

  void test_forward(const Buffer& weight, const std::optional<Buffer>& bias) {
    const Buffer input = arrays_.in(t_.data, axes_.elements, -1, 3);
    std::optional<Buffer> residual, sum, placed_residual;
    Buffer x = arrays_.out(sum_type_, axes_.elements);
    for (int64_t i = 0; i < x.size(); ++i) x.set(i, input[i]);
    if (kind_.residual != Residual::none) {
      residual = arrays_.in(sum_type_, axes_.elements, -2, 1);
      placed_residual = in_strides(*residual);
      sum = arrays_.out(sum_type_, axes_.elements);
      for (int64_t i = 0; i < x.size(); ++i) x.set(i, rounded(input[i] + (*residual)[i], sum_type_));
    }
    const Statistics expected = statistics(axes_, x, kEps);
    const Expected want = forward(axes_, x, expected, &*weight_, kind_.weight_offset, pointer(bias_));
    Buffer output = arrays_.out(t_.data, axes_.elements), mean = arrays_.out(statistics_type_, rows_),
           rstd = arrays_.out(statistics_type_, rows_);
    const Buffer placed_input = in_strides(input);
    const RowNormForward op{.input = placed_input.data(),
                            .residual = data(placed_residual),
                            .weight = weight.data(),
                            .bias = data(bias),
                            .output = output.data(),
                            .sum = data(sum),
                            .mean = axes_.centered ? mean.data() : nullptr,
                            .rstd = rstd.data(),
                            .rows = rows_,
                            .columns = columns_,
                            .input_strides = strides_,
                            .residual_strides = strides_,
                            .lines = lines_,
                            .eps = kEps,
                            .weight_offset = kind_.weight_offset,
                            .statistics = kind_.statistics,
                            .dtype = t_.data,
                            .sum_dtype = sum_type_,
                            .param_dtype = t_.param};
    run_everywhere(
        name("forward"), axes_.elements, op, [&] { output.forget(), mean.forget(), rstd.forget(), forget(sum); },
        [&] {
          if (axes_.centered) compare("mean", mean, expected.mean, statistics_type_);
          compare("rstd", rstd, expected.rstd, statistics_type_);
          compare("output", output, want, statistics_type_);
          if (sum) compare_exactly("sum", *sum, x);
        });
  }

  void test_backward(const Buffer& weight) {
    const Buffer x = arrays_.in(sum_type_, axes_.elements, -1, 3);
    const Buffer grad_output = arrays_.in(t_.data, axes_.elements, -1, 2);
    std::optional<Buffer> grad_sum, grad_residual, grad_bias;
    if (kind_.grad_sum) grad_sum = arrays_.in(sum_type_, axes_.elements, -1, 1);
    if (sum_type_ != t_.data) grad_residual = arrays_.out(sum_type_, axes_.elements);
    if (kind_.bias) grad_bias = arrays_.out(t_.param, axes_.affines);
    const Statistics saved = statistics(axes_, x, kEps);
    const Buffer mean = arrays_.copy(statistics_type_, saved.mean.value);
    const Buffer rstd = arrays_.copy(statistics_type_, saved.rstd.value);
    const Gradients want =
        backward(axes_, grad_output, x, mean, rstd, &*weight_, kind_.weight_offset, true, pointer(grad_sum));
    Buffer grad_input = arrays_.out(t_.data, axes_.elements), grad_weight = arrays_.out(t_.param, axes_.affines);
    const Buffer placed_input = in_strides(x), placed_gradient = in_strides(grad_output);
    const RowNormBackward op{.grad_output = placed_gradient.data(),
                             .grad_sum = data(grad_sum),
                             .input = placed_input.data(),
                             .mean = axes_.centered ? mean.data() : nullptr,
                             .rstd = rstd.data(),
                             .weight = weight.data(),
                             .grad_input = grad_input.data(),
                             .grad_residual = data(grad_residual),
                             .grad_weight = grad_weight.data(),
                             .grad_bias = data(grad_bias),
                             .rows = rows_,
                             .columns = columns_,
                             .grad_output_strides = strides_,
                             .input_strides = strides_,
                             .lines = lines_,
                             .weight_offset = kind_.weight_offset,
                             .statistics = kind_.statistics,
                             .dtype = t_.data,
                             .sum_dtype = sum_type_,
                             .param_dtype = t_.param};
    run_everywhere(
        name("backward"), axes_.elements, op,
        [&] { grad_input.forget(), grad_weight.forget(), forget(grad_bias), forget(grad_residual); },
        [&] {
          compare("grad_input", grad_input, want.input, statistics_type_);
          if (grad_residual) compare("grad_residual", *grad_residual, want.input, statistics_type_);
          compare("grad_weight", grad_weight, want.weight, statistics_type_);
          if (grad_bias) compare("grad_bias", *grad_bias, want.bias, statistics_type_);
        });
  }

  RowKind kind_;
  int64_t rows_, columns_;
  DTypes t_;
  Arrays arrays_;
  RowStrides strides_;
  ParameterLines lines_;
  DType sum_type_, statistics_type_;
  Axes axes_;
  std::optional<Buffer> weight_, bias_;
};

// Rows of less than a vector, heads, rows of some length; of several pieces, and few enough for threads to share them.
// Lines as many as threads, and fewer.
inline void test_row_kinds() {
  constexpr int64_t kLongColumns = 28808;  // too long for the ring of one block, and no multiple of a cluster's parts
  constexpr int64_t kShapes[][2] = {{12, 5}, {12, 64}, {36, 300}, {12, 1031}, {12, 5000}, {6, 17000}};
  for (const RowKind& kind : kRowKinds) {
    for (const DTypes& t : kDTypes) {
      if (kind.residual == Residual::wide && !is_half(t.data)) continue;
      for (const auto& [rows, columns] : kShapes)
        if (!skips_next()) RowKindCase(kind, rows, columns, t, cases % 2 == 1).test();
      if (kind.residual == Residual::none && kind.rows_per_line && kind.layout == Layout::slices && !skips_next()) {
        RowKind dense = kind;
        dense.layout = Layout::dense;
        RowKindCase(dense, 12, 5000, t, false).test();  // aligned
        RowKindCase(dense, 12, kLongColumns, t, false).test();
      }
      if (kind.residual == Residual::none && kind.rows_per_line && !skips_next()) {
        RowKind dense = kind;
        dense.layout = Layout::dense;
        RowKindCase(dense, 12, 24000 / size_of(t.data), t, false).test();  // too long for a block's registers, backward
      }
      if (kind.residual == Residual::none || kind.rows_per_line) continue;
      for (const int64_t columns : columns_of_sums(t.data, kind.residual == Residual::wide ? DType::float32 : t.data)) {
        RowKind dense = kind;
        dense.layout = Layout::dense;
        dense.grad_sum = true;
        RowKindCase(dense, 2, columns, t, false).test();
      }
      if (kind.residual == Residual::same && !skips_next()) {
        RowKind dense = kind;
        dense.layout = Layout::dense;
        RowKindCase(dense, 13, 9000, t, false).test();  // more rows than all stages of a ring hold
        dense.layout = Layout::aligned_heads;
        RowKindCase(dense, 14, kLongColumns, t, false).test();
      }
    }
  }
}

}  // namespace normext::test
