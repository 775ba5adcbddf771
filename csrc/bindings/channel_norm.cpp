#include "channel_norm.h"

namespace normext {

bool is_empty(const Tensor& input) {
  const auto count = input.sym_numel();
  return count.is_symbolic() ? TORCH_GUARD_OR_FALSE(count.sym_eq(0)) : count == 0;
}

void check_size(const char* name, const Tensor& parameter, const c10::SymInt& channels) {
  if (!parameter.defined()) return;
  TORCH_CHECK(expect_equal(parameter.sym_numel(), channels), name, " should contain ", channels, " elements not ",
              parameter.sym_numel());
}

at::ScalarType check_dtypes(const char* op, const Tensor& input, at::ArrayRef<Parameter> parameters) {
  return is_empty(input) ? input.scalar_type() : check_parameters(op, input, parameters);
}

at::MemoryFormat memory_format(const Tensor& input) {
  for (const auto format :
       {at::MemoryFormat::Contiguous, at::MemoryFormat::ChannelsLast, at::MemoryFormat::ChannelsLast3d})
    if (input.is_contiguous(format)) return format;
  return input.suggest_memory_format();
}

Tensor allocate_like(const Tensor& input) {
  if (is_empty(input)) return at::empty_like(input);  // in every format at once: its strides tell which is meant
  return empty(input, input.sym_sizes(), input.scalar_type(), memory_format(input));
}

ChannelNormShape shape_of(const Tensor& input, at::MemoryFormat format) {
  const int64_t batch = input.size(0), channels = input.size(1);
  return {batch, channels, input.numel() / (batch * channels), format != at::MemoryFormat::Contiguous};
}

Activation activation_of(const char* op, const ActivationName& name, double slope) {
  using Kind = Activation::Kind;
  if (!name) return {};
  if (*name == "relu") return {Kind::leaky_relu, 0};
  if (*name == "leaky_relu") return {Kind::leaky_relu, slope};
  if (*name == "silu") return {Kind::silu};
  TORCH_CHECK_VALUE(false, op,
                    ": expected activation to be None, 'relu', 'leaky_relu', ('leaky_relu', slope) or 'silu', ",
                    "but got '", std::string(*name), "'");
}

Tensor activated(const Tensor& z, const Activation& activation) {
  if (activation.kind == Activation::Kind::none) return z;
  if (activation.kind == Activation::Kind::silu) return z * z.sigmoid();
  return activation.slope == 0 ? z.relu() : at::leaky_relu(z, activation.slope);
}

static Tensor activation_gradient(const Activation& activation, const Tensor& grad_output, const Tensor& z) {
  if (activation.kind == Activation::Kind::none) return grad_output;
  if (activation.kind == Activation::Kind::leaky_relu) {
    if (activation.slope == 0) return at::where(z <= 0, at::zeros_like(grad_output), grad_output);
    return at::where(z > 0, grad_output, grad_output * activation.slope);
  }
  const Tensor sigmoid = z.sigmoid();
  return grad_output * sigmoid * (1 + z * (1 - sigmoid));
}

Tensor activation_gradient(const Activation& activation, const Tensor& grad_output, const Tensor& normalized,
                           const Tensor& weight, const Tensor& bias, const Tensor& residual) {
  const auto wide = [](const Tensor& t) { return t.to(at::promote_types(t.scalar_type(), at::kFloat)); };
  Tensor z = normalized;
  if (weight.defined()) z = z * wide(weight);
  if (bias.defined()) z = z + wide(bias);
  if (residual.defined()) z = z + wide(residual);
  return activation_gradient(activation, wide(grad_output), z).to(grad_output.scalar_type());
}

void check_grad_output(const char* op, const Tensor& grad_output, const Tensor& input) {
  check_device(op, "grad_output", grad_output, input);
  TORCH_CHECK(
      expect_equal(grad_output.sym_sizes(), input.sym_sizes()) && grad_output.scalar_type() == input.scalar_type(), op,
      ": expected grad_output of input's shape and dtype, ", input.sym_sizes(), " and ", input.scalar_type(),
      ", but got ", grad_output.sym_sizes(), " and ", grad_output.scalar_type());
}

}  // namespace normext
