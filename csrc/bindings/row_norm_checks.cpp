// row_norm_checks.cpp -- what a row norm may be handed, and what is said of anything else.
#include "row_norm_skin.h"

namespace normext {

const char* RowNorm::name() const {
  constexpr const char* kNames[][2] = {
      {"layer_norm", "rms_norm"}, {"add_layer_norm", "add_rms_norm"}, {"adaptive_layer_norm", "adaptive_rms_norm"}};
  return kNames[static_cast<int>(kind)][static_cast<int>(statistics)];
}

static void check_parameter_shape(const char* name, const Tensor& parameter, c10::SymIntArrayRef normalized_shape) {
  TORCH_CHECK(!parameter.defined() || expect_equal(parameter.sym_sizes(), normalized_shape), "Expected ", name,
              " to be of same shape as normalized_shape, but got ", name, " of shape ", parameter.sym_sizes(),
              " and normalized_shape = ", normalized_shape);
}

static void check_input_shape(const RowNorm& norm, const Tensor& input, c10::SymIntArrayRef normalized_shape) {
  const auto sizes = input.sym_sizes();
  TORCH_CHECK_VALUE(norm.centered() || sizes.size() >= normalized_shape.size(), "Input tensor must have at least ",
                    normalized_shape.size(), " dimensions, but got ", sizes.size());  // of RMSNorm, torch says so
  const bool fits = sizes.size() >= normalized_shape.size() &&
                    expect_equal(sizes.slice(sizes.size() - normalized_shape.size()), normalized_shape);
  if (fits) return;
  std::ostringstream expected;
  for (const auto& size : normalized_shape) expected << ", " << size;
  TORCH_CHECK(false, "Given normalized_shape=", normalized_shape, ", expected input with shape [*", expected.str(),
              "], but got input of size", sizes);
}

// Of an adaptive norm's operators: see RowNormKind.
static void check_lines(const char* name, const Tensor& parameter, const Tensor& scale, const Tensor& input) {
  const auto sizes = parameter.sym_sizes(), expected = input.sym_sizes();
  bool fits = input.dim() > 0 && sizes.size() == expected.size() && expect_equal(sizes, scale.sym_sizes()) &&
              expect_equal(sizes.back(), expected.back());
  bool shared = false;
  for (int64_t d = 0; fits && d + 1 < input.dim(); ++d) {
    if (is_one(sizes[d]))
      shared = shared || !is_one(expected[d]);
    else
      fits = !shared && expect_equal(sizes[d], expected[d]);
  }
  TORCH_CHECK(fits, "Expected ", name, " to have input's leading sizes and then ones, and scale's shape, but got ",
              name, " of shape ", sizes, ", scale of shape ", scale.sym_sizes(), " and input of shape ", expected);
}

// `dtype` is the output's; input may be a sum.
static at::ScalarType check(const RowNorm& norm, const Tensor& input, at::ScalarType dtype,
                            c10::SymIntArrayRef normalized_shape, const Tensor& weight, const Tensor& bias) {
  if (norm.adaptive()) {
    check_lines("scale", weight, weight, input);
    if (bias.defined()) check_lines("shift", bias, weight, input);
    check_input_dtype(norm.name(), input);
    return check_parameters(norm.name(), input, dtype, {{"scale", weight}, {"shift", bias}});
  }
  TORCH_CHECK(!normalized_shape.empty(), "Expected normalized_shape to be at least 1-dimensional, i.e., containing at ",
              "least one element, but got normalized_shape = ", normalized_shape);
  check_parameter_shape("weight", weight, normalized_shape);
  check_parameter_shape("bias", bias, normalized_shape);
  check_input_shape(norm, input, normalized_shape);
  check_input_dtype(norm.name(), input);
  return check_parameters(norm.name(), input, dtype, {{"weight", weight}, {"bias", bias}});
}

at::ScalarType check(const RowNorm& norm, const RowNormInputs& in) {
  const auto type = check(norm, in.input, in.input.scalar_type(), in.normalized_shape, in.weight, in.bias);
  if (norm.kind == RowNormKind::add) check_residual(norm.name(), in.residual, in.input, true);
  return type;
}

static void check_aligned(const char* name, const Tensor& parameter, const Tensor& input) {
  const auto sizes = parameter.sym_sizes(), expected = input.sym_sizes();
  bool fits = !sizes.empty() && sizes.size() <= expected.size() && expect_equal(sizes.back(), expected.back());
  for (size_t d = 0; fits && d + 1 < sizes.size(); ++d) fits = is_one(sizes[d]) || expect_equal(sizes[d], expected[d]);
  TORCH_CHECK(fits, "Expected ", name, " to be of input's size in the last dimension, and before it of sizes that ",
              "broadcast to input's first ones, but got ", name, " of shape ", sizes, " and input of shape ", expected);
}

void check_adaptive(const RowNorm& norm, const Tensor& input, const Tensor& scale, const Tensor& shift) {
  TORCH_CHECK(input.dim() > 0, norm.name(), ": expected input of at least one dimension, but got input of shape []");
  check_aligned("scale", scale, input);
  if (shift.defined()) check_aligned("shift", shift, input);
  check_input_dtype(norm.name(), input);
  check_parameters(norm.name(), input, input.scalar_type(), {{"scale", scale}, {"shift", shift}});
}

// ------------------------------------------------------------------------------------------------ of backward
static void check_gradient(const RowNorm& norm, const char* name, const Tensor& gradient, at::ScalarType dtype,
                           const Tensor& input) {
  check_device(norm.name(), name, gradient, input);
  TORCH_CHECK(expect_equal(gradient.sym_sizes(), input.sym_sizes()) && gradient.scalar_type() == dtype, norm.name(),
              "_backward: expected ", name, " of input's shape and dtype, ", input.sym_sizes(), " and ", dtype,
              ", but got ", gradient.sym_sizes(), " and ", gradient.scalar_type());
}

static void check_statistics(const RowNorm& norm, const char* name, const Tensor& statistics, const Tensor& input,
                             c10::SymIntArrayRef normalized_shape) {
  TORCH_CHECK(statistics.defined(), norm.name(), "_backward: expected ", name, ", but got None");
  check_device(norm.name(), name, statistics, input);
  const auto leading = input.sym_sizes().slice(0, input.dim() - normalized_shape.size());
  TORCH_CHECK(expect_equal(statistics.sym_numel(), c10::multiply_integers(leading)) &&
                  statistics.scalar_type() == statistics_type(input),
              norm.name(), "_backward: expected ", name, " as ", norm.name(), "_forward returns it, one ",
              statistics_type(input), " per row, but got ", statistics.sym_sizes(), " of ", statistics.scalar_type());
}

at::ScalarType check_backward(const RowNorm& norm, const RowNormGrads& in, const RowNormMask& mask) {
  check(norm, in.input, in.dtype, in.normalized_shape, in.weight, {});
  const auto type = in.input.scalar_type();
  const bool mixed = type != in.dtype;
  TORCH_CHECK(!mixed || (is_half(in.dtype) && type == at::kFloat), norm.name(), "_backward: expected sum of ", in.dtype,
              is_half(in.dtype) ? " or Float" : "", ", but got ", type);
  TORCH_CHECK(mixed || !mask[1], norm.name(), "_backward: expected no output_mask for the residual, whose gradient is ",
              "the input's where both are of one dtype");
  check_gradient(norm, "grad_output", in.grad_output, in.dtype, in.input);
  if (in.grad_sum.defined()) check_gradient(norm, "grad_sum", in.grad_sum, type, in.input);
  if (norm.centered()) check_statistics(norm, "mean", in.mean, in.input, in.normalized_shape);
  check_statistics(norm, "rstd", in.rstd, in.input, in.normalized_shape);
  return gradient_type(in.input, in.weight);
}

}  // namespace normext
