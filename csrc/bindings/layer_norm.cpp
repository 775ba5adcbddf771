// layer_norm.cpp -- torch's side of LayerNorm: argument checks, allocation, derivatives, autocast.
#include "layer_norm.h"

#include <ATen/autocast_mode.h>

#include <numeric>

#include "double_backward.h"
#include "norm_node.h"
#include "ops/row_norm.h"

namespace normext {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Forward = std::tuple<Tensor, Tensor, Tensor>;

// ------------------------------------------------------------------------------------------------ checks, allocation
void check_shapes(const Tensor& input, c10::SymIntArrayRef normalized_shape, const Tensor& weight, const Tensor& bias) {
  TORCH_CHECK(!normalized_shape.empty(), "Expected normalized_shape to be at least 1-dimensional, i.e., containing at ",
              "least one element, but got normalized_shape = ", normalized_shape);
  const auto check_parameter = [&](const char* name, const Tensor& parameter) {
    TORCH_CHECK(!parameter.defined() || expect_equal(parameter.sym_sizes(), normalized_shape), "Expected ", name,
                " to be of same shape as normalized_shape, but got ", name, " of shape ", parameter.sym_sizes(),
                " and normalized_shape = ", normalized_shape);
  };
  check_parameter("weight", weight);
  check_parameter("bias", bias);

  const auto sizes = input.sym_sizes();
  const bool fits = sizes.size() >= normalized_shape.size() &&
                    expect_equal(sizes.slice(sizes.size() - normalized_shape.size()), normalized_shape);
  if (fits) return;
  std::ostringstream expected;
  for (const auto& size : normalized_shape) expected << ", " << size;
  TORCH_CHECK(false, "Given normalized_shape=", normalized_shape, ", expected input with shape [*", expected.str(),
              "], but got input of size", sizes);
}

// Returns the parameters' dtype.
at::ScalarType check(const Tensor& input, c10::SymIntArrayRef normalized_shape, const Tensor& weight,
                     const Tensor& bias) {
  check_shapes(input, normalized_shape, weight, bias);
  check_input_dtype("layer_norm", input);
  return check_parameters("layer_norm", input, {{"weight", weight}, {"bias", bias}});
}

// output like input, contiguous; mean and rstd of shape [*, 1, ...].
Forward allocate(const Tensor& input, c10::SymIntArrayRef normalized_shape) {
  c10::SymDimVector statistics(input.sym_sizes());
  std::fill(statistics.end() - static_cast<int64_t>(normalized_shape.size()), statistics.end(), 1);
  const auto type = statistics_type(input);
  return {empty(input, input.sym_sizes(), input.scalar_type()), empty(input, statistics, type),
          empty(input, statistics, type)};
}

Gradients allocate_gradients(const Tensor& input, c10::SymIntArrayRef normalized_shape, at::ScalarType parameters,
                             Mask mask) {
  const auto parameter = [&](bool wanted) { return wanted ? empty(input, normalized_shape, parameters) : Tensor{}; };
  return {mask[0] ? empty(input, input.sym_sizes(), input.scalar_type()) : Tensor{}, parameter(mask[1]),
          parameter(mask[2])};
}

// ------------------------------------------------------------------------------------------------ kernels and shapes
Forward forward_meta(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                     const MaybeTensor& bias, double) {
  check(input, normalized_shape, or_undefined(weight), or_undefined(bias));
  return allocate(input, normalized_shape);
}

Forward forward_kernel(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& maybe_weight,
                       const MaybeTensor& maybe_bias, double eps) {
  const Tensor weight = contiguous_or_undefined(or_undefined(maybe_weight));
  const Tensor bias = contiguous_or_undefined(or_undefined(maybe_bias));
  const auto param_type = check(input, normalized_shape, weight, bias);
  auto outputs = allocate(input, normalized_shape);
  auto& [output, mean, rstd] = outputs;
  if (input.numel() == 0) {  // rows of no elements have statistics all the same: torch's
    mean.zero_();
    rstd.fill_(std::numeric_limits<double>::quiet_NaN());
    return outputs;
  }
  const Tensor data = input.contiguous();
  RowNormForward op{};
  op.input = data.const_data_ptr();
  op.weight = data_or_null(weight);
  op.bias = data_or_null(bias);
  op.output = output.mutable_data_ptr();
  op.mean = mean.mutable_data_ptr();
  op.rstd = rstd.mutable_data_ptr();
  op.rows = mean.numel();
  op.columns = input.numel() / op.rows;
  op.eps = eps;
  op.dtype = dtype_of(input.scalar_type());
  op.param_dtype = dtype_of(param_type);
  run(op, input.device());
  return outputs;
}

void check_gradient(const Tensor& grad_output, const Tensor& input) {
  TORCH_CHECK(
      expect_equal(grad_output.sym_sizes(), input.sym_sizes()) && grad_output.scalar_type() == input.scalar_type(),
      "layer_norm_backward: expected grad_output of input's shape and dtype, ", input.sym_sizes(), " and ",
      input.scalar_type(), ", but got ", grad_output.sym_sizes(), " and ", grad_output.scalar_type());
}

void check_statistics(const Tensor& statistics, const char* name, const Tensor& input,
                      c10::SymIntArrayRef normalized_shape) {
  const auto leading = input.sym_sizes().slice(0, input.dim() - normalized_shape.size());
  TORCH_CHECK(expect_equal(statistics.sym_numel(), c10::multiply_integers(leading)) &&
                  statistics.scalar_type() == statistics_type(input),
              "layer_norm_backward: expected ", name, " as layer_norm_forward returns it, one ", statistics_type(input),
              " per row, but got ", statistics.sym_sizes(), " of ", statistics.scalar_type());
}

at::ScalarType check_backward(const Tensor& grad_output, const Tensor& input, c10::SymIntArrayRef normalized_shape,
                              const Tensor& mean, const Tensor& rstd, const Tensor& weight) {
  check(input, normalized_shape, weight, {});
  check_device("layer_norm_backward", "grad_output", grad_output, input);
  check_device("layer_norm_backward", "mean", mean, input);
  check_device("layer_norm_backward", "rstd", rstd, input);
  check_gradient(grad_output, input);
  check_statistics(mean, "mean", input, normalized_shape);
  check_statistics(rstd, "rstd", input, normalized_shape);
  return gradient_type(input, weight);
}

Gradients backward_meta(const Tensor& grad_output, const Tensor& input, c10::SymIntArrayRef normalized_shape,
                        const Tensor& mean, const Tensor& rstd, const MaybeTensor& weight, double, Mask mask) {
  const auto param_type = check_backward(grad_output, input, normalized_shape, mean, rstd, or_undefined(weight));
  return allocate_gradients(input, normalized_shape, param_type, mask);
}

Gradients backward_kernel(const Tensor& grad_output, const Tensor& input, c10::SymIntArrayRef normalized_shape,
                          const Tensor& mean, const Tensor& rstd, const MaybeTensor& maybe_weight, double, Mask mask) {
  const Tensor weight = contiguous_or_undefined(or_undefined(maybe_weight));
  const auto param_type = check_backward(grad_output, input, normalized_shape, mean, rstd, weight);
  auto gradients = allocate_gradients(input, normalized_shape, param_type, mask);
  auto& [grad_input, grad_weight, grad_bias] = gradients;
  if (input.numel() == 0) {
    if (grad_weight.defined()) grad_weight.zero_();
    if (grad_bias.defined()) grad_bias.zero_();
    return gradients;
  }
  if (!mask[0] && !mask[1] && !mask[2]) return gradients;
  const Tensor dy = grad_output.contiguous(), x = input.contiguous(), m = mean.contiguous(), r = rstd.contiguous();
  RowNormBackward op{};
  op.grad_output = dy.const_data_ptr();
  op.input = x.const_data_ptr();
  op.mean = m.const_data_ptr();
  op.rstd = r.const_data_ptr();
  op.weight = data_or_null(weight);
  op.grad_input = mutable_data_or_null(grad_input);
  op.grad_weight = mutable_data_or_null(grad_weight);
  op.grad_bias = mutable_data_or_null(grad_bias);
  op.rows = mean.numel();
  op.columns = input.numel() / op.rows;
  op.dtype = dtype_of(input.scalar_type());
  op.param_dtype = dtype_of(param_type);
  run(op, input.device());
  return gradients;
}

// ------------------------------------------------------------------------------------------------ calls through torch
Forward call_forward(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                     const MaybeTensor& bias, double eps) {
  static const auto op = operator_handle<decltype(forward_meta)>("normext::layer_norm_forward");
  return op.call(input, normalized_shape, weight, bias, eps);
}

Gradients call_backward(const Tensor& grad_output, const Tensor& input, c10::SymIntArrayRef normalized_shape,
                        const Tensor& mean, const Tensor& rstd, const MaybeTensor& weight, double eps, Mask mask) {
  static const auto op = operator_handle<decltype(backward_meta)>("normext::layer_norm_backward");
  return op.call(grad_output, input, normalized_shape, mean, rstd, weight, eps, mask);
}

// ------------------------------------------------------------------------------------------------ derivatives
struct LayerNormDerivative {
  static constexpr const char* kName = "LayerNormBackward";
  double eps;
  int64_t normalized_dims;

  Gradients gradients(const Tensor& grad_output, const Saved& s, Mask mask) const {
    const auto normalized_shape = s.input.sym_sizes().slice(s.input.dim() - normalized_dims);
    return call_backward(grad_output, s.input, normalized_shape, s.mean, s.rstd, or_none(s.weight), eps, mask);
  }
  void collect(torch::dynamo::autograd::CompiledNodeArgs& args) const {
    args.collect(eps);
    args.collect(normalized_dims);
  }
};

Normalization normalization(const Tensor& input, int64_t normalized_dims, double eps) {
  std::vector<int64_t> dim(normalized_dims);
  std::iota(dim.begin(), dim.end(), input.dim() - normalized_dims);
  return {input, dim, eps};
}

struct LayerNormBackwardFunction : torch::autograd::Function<LayerNormBackwardFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& input,
                               c10::SymIntArrayRef normalized_shape, const Tensor& mean, const Tensor& rstd,
                               const MaybeTensor& weight, double eps, Mask mask) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto gradients = call_backward(grad_output, input, normalized_shape, mean, rstd, weight, eps, mask);
    ctx->save_for_backward({grad_output, input, or_undefined(weight)});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["normalized_dims"] = static_cast<int64_t>(normalized_shape.size());
    ctx->saved_data["mask"] = c10::List<bool>({mask[0], mask[1], mask[2]});
    ctx->set_materialize_grads(false);
    return only_defined(gradients);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &grad_output = saved[0], &input = saved[1], &weight = saved[2];
    const auto norm =
        normalization(input, ctx->saved_data["normalized_dims"].toInt(), ctx->saved_data["eps"].toDouble());
    const auto gradients = double_backward(spread(grads, saved_mask(ctx)), grad_output, input, weight, norm);
    return {gradients.grad_output, gradients.input, {}, {}, {}, gradients.weight, {}, {}};
  }
};

Forward forward_autograd(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& maybe_weight,
                         const MaybeTensor& maybe_bias, double eps) {
  const auto forward = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward(input, normalized_shape, maybe_weight, maybe_bias, eps);
  };
  const Tensor weight = or_undefined(maybe_weight), bias = or_undefined(maybe_bias);
  if (!needs_autograd("layer_norm_forward", input, weight, bias)) return forward();
  const LayerNormDerivative norm{eps, static_cast<int64_t>(normalized_shape.size())};
  const auto node = make_node(norm, input, weight, bias);
  auto outputs = forward();
  const auto& [output, mean, rstd] = outputs;
  node->save({input, weight, mean, rstd});
  torch::autograd::set_history(output, node);
  return outputs;
}

Gradients backward_autograd(const Tensor& grad_output, const Tensor& input, c10::SymIntArrayRef normalized_shape,
                            const Tensor& mean, const Tensor& rstd, const MaybeTensor& weight, double eps, Mask mask) {
  if (have_tangents(grad_output, input, or_undefined(weight))) {
    check_backward(grad_output, input, normalized_shape, mean, rstd, or_undefined(weight));
    const auto norm = normalization(input.to(at::kDouble), static_cast<int64_t>(normalized_shape.size()), eps);
    return differentiable_backward(grad_output, input, or_undefined(weight), norm, normalized_shape, mask);
  }
  if (!needs_autograd("layer_norm_backward", grad_output, input, or_undefined(weight))) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_backward(grad_output, input, normalized_shape, mean, rstd, weight, eps, mask);
  }
  const auto gradients = spread(
      LayerNormBackwardFunction::apply(grad_output, input, normalized_shape, mean, rstd, weight, eps, mask), mask);
  return {gradients[0], gradients[1], gradients[2]};
}

Tensor composite(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                 const MaybeTensor& bias, double eps) {
  if (input.is_mkldnn())  // opaque to anybody but torch
    return at::layer_norm_symint(input, normalized_shape, weight, bias, eps, false);
  return std::get<0>(call_forward(input, normalized_shape, weight, bias, eps));
}

// torch runs layer_norm in float32 under CUDA's autocast.
Tensor autocast_cuda(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                     const MaybeTensor& bias, double eps) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCUDA);
  const auto cast = [](const auto& t) { return at::autocast::cached_cast(at::kFloat, t, at::kCUDA); };
  return layer_norm(cast(input), normalized_shape, cast(weight), cast(bias), eps);
}

void register_kernels(torch::Library& m) {
  m.impl("layer_norm_forward", forward_kernel);
  m.impl("layer_norm_backward", backward_kernel);
}

}  // namespace

Tensor layer_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                  const MaybeTensor& bias, double eps) {
  static const auto op = operator_handle<decltype(layer_norm)>("normext::layer_norm");
  return op.call(input, normalized_shape, weight, bias, eps);
}

void check_layer_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                      const MaybeTensor& bias, double) {
  check(input, normalized_shape, or_undefined(weight), or_undefined(bias));
}

TORCH_LIBRARY_IMPL(normext, CompositeImplicitAutograd, m) { m.impl("layer_norm", composite); }
TORCH_LIBRARY_IMPL(normext, AutocastCUDA, m) { m.impl("layer_norm", autocast_cuda); }
TORCH_LIBRARY_IMPL(normext, Autograd, m) {
  m.impl("layer_norm_forward", forward_autograd);
  m.impl("layer_norm_backward", backward_autograd);
}
TORCH_LIBRARY_IMPL(normext, Meta, m) {
  m.impl("layer_norm_forward", forward_meta);
  m.impl("layer_norm_backward", backward_meta);
}
TORCH_LIBRARY_IMPL(normext, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(normext, CUDA, m) { register_kernels(m); }

}  // namespace normext
