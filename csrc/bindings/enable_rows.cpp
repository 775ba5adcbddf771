// enable_rows.cpp -- torch's operators for LayerNorm and RMSNorm, computed by normext's kernels.
#include "enable.h"
#include "row_norm.h"

namespace normext {
namespace {

using LayerNorm = std::tuple<Tensor, Tensor, Tensor>;  // output, mean, rstd
using RMSNorm = std::tuple<Tensor, Tensor>;            // output, rstd

// Whether input is rows of normalized_shape, and the parameters have that shape.
template <class Shape, class... Tensors>
bool takes_shapes(const Tensor& input, const Shape& normalized_shape, const Tensors&... parameters) {
  const auto sizes = input.sizes();
  const auto fits = [&](at::IntArrayRef given) {
    return given.size() == normalized_shape.size() && std::equal(given.begin(), given.end(), normalized_shape.begin());
  };
  return !normalized_shape.empty() && sizes.size() >= normalized_shape.size() &&
         fits(sizes.slice(sizes.size() - normalized_shape.size())) &&
         ((!parameters || !parameters->defined() || fits(parameters->sizes())) && ...);
}

template <class Shape>
int64_t rows_of(const Tensor& input, const Shape& normalized_shape) {
  return c10::multiply_integers(input.sizes().slice(0, input.dim() - normalized_shape.size()));
}

// ------------------------------------------------------------------------------------------------ LayerNorm
LayerNorm native_layer_norm(c10::DispatchKeySet keys, const Tensor& input, c10::SymIntArrayRef normalized_shape,
                            const MaybeTensor& weight, const MaybeTensor& bias, double eps) {
  at::ScalarType parameters{};
  if (!takes_dtype(input) || input.numel() == 0 || !takes_parameters(input, parameters, weight, bias) ||
      !takes_shapes(input, normalized_shape, weight, bias))
    return call_torch<&native_layer_norm>(keys, input, normalized_shape, weight, bias, eps);
  auto [output, mean, rstd] = layer_norm_forward_kernel(input, normalized_shape, weight, bias, eps);
  const auto type = saved_type(input, parameters);
  return {std::move(output), as_type(mean, type), as_type(rstd, type)};
}

Gradients native_layer_norm_backward(c10::DispatchKeySet keys, const Tensor& grad_output, const Tensor& input,
                                     c10::SymIntArrayRef normalized_shape, const Tensor& mean, const Tensor& rstd,
                                     const MaybeTensor& weight, const MaybeTensor& bias, Mask mask) {
  at::ScalarType parameters{};
  if (!takes_dtype(input) || input.numel() == 0 || !takes_parameters(input, parameters, weight, bias) ||
      !takes_shapes(input, normalized_shape, weight, bias) || !takes_grad_output(input, grad_output) ||
      !takes_saved(input, mean, rows_of(input, normalized_shape)) ||
      !takes_saved(input, rstd, rows_of(input, normalized_shape)))
    return call_torch<&native_layer_norm_backward>(keys, grad_output, input, normalized_shape, mean, rstd, weight, bias,
                                                   mask);
  const auto type = statistics_type(input);
  auto [grad_input, grad_weight, grad_bias] = layer_norm_backward_kernel(
      grad_output, input, normalized_shape, as_type(mean, type), as_type(rstd, type), weight, mask);
  return {std::move(grad_input), as_type(grad_weight, parameters), as_type(grad_bias, parameters)};
}

// ------------------------------------------------------------------------------------------------ RMSNorm
// On the CPU torch composes this operator of others, below autograd as above. With a kernel there autograd takes the
// derivative that torch has for CUDA's: every order, and forward mode. What aten::rms_norm composes without asking
// (a weight of another dtype, complex numbers, channels_last) stays as it is.
bool takes_rms_norm(const Tensor& input, at::IntArrayRef normalized_shape, const MaybeTensor& weight) {
  at::ScalarType parameters{};
  return takes_dtype(input) && takes_parameters(input, parameters, weight) && parameters == input.scalar_type() &&
         takes_shapes(input, normalized_shape, weight);
}

RMSNorm fused_rms_norm(c10::DispatchKeySet keys, const Tensor& input, at::IntArrayRef normalized_shape,
                       const MaybeTensor& weight, std::optional<double> eps) {
  if (input.numel() == 0 || !takes_rms_norm(input, normalized_shape, weight))
    return call_torch<&fused_rms_norm>(keys, input, normalized_shape, weight, eps);
  return rms_norm_forward_kernel(input, normalized_shape, weight, eps);
}

RMSNorm fused_rms_norm_backward(c10::DispatchKeySet keys, const Tensor& grad_output, const Tensor& input,
                                at::IntArrayRef normalized_shape, const Tensor& rstd, const MaybeTensor& weight,
                                std::array<bool, 2> mask) {
  if (!takes_rms_norm(input, normalized_shape, weight) || !takes_grad_output(input, grad_output) ||
      !takes_saved(input, rstd, rows_of(input, normalized_shape)))
    return call_torch<&fused_rms_norm_backward>(keys, grad_output, input, normalized_shape, rstd, weight, mask);
  return rms_norm_backward_kernel(grad_output, input, normalized_shape, as_type(rstd, statistics_type(input)), weight,
                                  mask);
}

}  // namespace

std::vector<Replacement> replace_row_norms() {
  return {
      replace<&native_layer_norm>("layer_norm", "native_layer_norm"),
      replace<&native_layer_norm_backward>("layer_norm", "native_layer_norm_backward"),
      replace<&fused_rms_norm>("rms_norm", "_fused_rms_norm"),
      replace<&fused_rms_norm_backward>("rms_norm", "_fused_rms_norm_backward", "", Where::both, Where::cpu),
  };
}

}  // namespace normext
