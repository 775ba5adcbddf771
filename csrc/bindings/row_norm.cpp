// row_norm.cpp -- torch's side of the row norms, LayerNorm and RMSNorm: argument checks, allocation, derivatives,
// autocast. What follows is written for both; the last section gives it each operator's signature.
#include "row_norm.h"

#include <ATen/autocast_mode.h>

#include <numeric>

#include "double_backward.h"
#include "norm_node.h"
#include "ops/row_norm.h"

namespace normext {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Forward = std::tuple<Tensor, Tensor, Tensor>;  // output, mean and rstd; no mean where the norm is not centered

struct RowNorm {
  RowStatistics statistics;
  double eps, weight_offset;

  bool centered() const { return statistics == RowStatistics::centered; }
  const char* name() const { return centered() ? "layer_norm" : "rms_norm"; }
};
RowNorm layer_norm_of(double eps, double weight_offset) { return {RowStatistics::centered, eps, weight_offset}; }
RowNorm rms_norm_of(double eps, double weight_offset) { return {RowStatistics::uncentered, eps, weight_offset}; }

// ------------------------------------------------------------------------------------------------ checks, allocation
void check_shapes(const RowNorm& norm, const Tensor& input, c10::SymIntArrayRef normalized_shape, const Tensor& weight,
                  const Tensor& bias) {
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

// Returns the parameters' dtype.
at::ScalarType check(const RowNorm& norm, const Tensor& input, c10::SymIntArrayRef normalized_shape,
                     const Tensor& weight, const Tensor& bias) {
  check_shapes(norm, input, normalized_shape, weight, bias);
  check_input_dtype(norm.name(), input);
  return check_parameters(norm.name(), input, {{"weight", weight}, {"bias", bias}});
}

// output like input, contiguous; mean and rstd of shape [*, 1, ...].
Forward allocate(const RowNorm& norm, const Tensor& input, c10::SymIntArrayRef normalized_shape) {
  c10::SymDimVector statistics(input.sym_sizes());
  std::fill(statistics.end() - static_cast<int64_t>(normalized_shape.size()), statistics.end(), 1);
  const auto type = statistics_type(input);
  return {empty(input, input.sym_sizes(), input.scalar_type()),
          norm.centered() ? empty(input, statistics, type) : Tensor{}, empty(input, statistics, type)};
}

Gradients allocate_gradients(const Tensor& input, c10::SymIntArrayRef normalized_shape, at::ScalarType parameters,
                             Mask mask) {
  const auto parameter = [&](bool wanted) { return wanted ? empty(input, normalized_shape, parameters) : Tensor{}; };
  return {mask[0] ? empty(input, input.sym_sizes(), input.scalar_type()) : Tensor{}, parameter(mask[1]),
          parameter(mask[2])};
}

// ------------------------------------------------------------------------------------------------ kernels and shapes
Forward forward_meta(const RowNorm& norm, const Tensor& input, c10::SymIntArrayRef normalized_shape,
                     const MaybeTensor& weight, const MaybeTensor& bias) {
  check(norm, input, normalized_shape, or_undefined(weight), or_undefined(bias));
  return allocate(norm, input, normalized_shape);
}

Forward forward_kernel(const RowNorm& norm, const Tensor& input, c10::SymIntArrayRef normalized_shape,
                       const MaybeTensor& maybe_weight, const MaybeTensor& maybe_bias) {
  const Tensor weight = contiguous_or_undefined(or_undefined(maybe_weight));
  const Tensor bias = contiguous_or_undefined(or_undefined(maybe_bias));
  const auto param_type = check(norm, input, normalized_shape, weight, bias);
  auto outputs = allocate(norm, input, normalized_shape);
  auto& [output, mean, rstd] = outputs;
  if (input.numel() == 0) {  // rows of no elements have statistics all the same: torch's
    if (mean.defined()) mean.zero_();
    rstd.fill_(std::numeric_limits<double>::quiet_NaN());
    return outputs;
  }
  const Tensor data = input.contiguous();
  RowNormForward op{};
  op.input = data.const_data_ptr();
  op.weight = data_or_null(weight);
  op.bias = data_or_null(bias);
  op.output = output.mutable_data_ptr();
  op.mean = mutable_data_or_null(mean);
  op.rstd = rstd.mutable_data_ptr();
  op.rows = rstd.numel();
  op.columns = input.numel() / op.rows;
  op.input_strides = {op.rows, 0, op.columns};
  op.lines = {op.rows, op.columns, op.columns};
  op.eps = norm.eps;
  op.weight_offset = weight.defined() ? norm.weight_offset : 0;
  op.statistics = norm.statistics;
  op.dtype = op.sum_dtype = dtype_of(input.scalar_type());
  op.param_dtype = dtype_of(param_type);
  run(op, input.device());
  return outputs;
}

void check_gradient(const RowNorm& norm, const Tensor& grad_output, const Tensor& input) {
  TORCH_CHECK(
      expect_equal(grad_output.sym_sizes(), input.sym_sizes()) && grad_output.scalar_type() == input.scalar_type(),
      norm.name(), "_backward: expected grad_output of input's shape and dtype, ", input.sym_sizes(), " and ",
      input.scalar_type(), ", but got ", grad_output.sym_sizes(), " and ", grad_output.scalar_type());
}

void check_statistics(const RowNorm& norm, const Tensor& statistics, const char* name, const Tensor& input,
                      c10::SymIntArrayRef normalized_shape) {
  check_device(norm.name(), name, statistics, input);
  const auto leading = input.sym_sizes().slice(0, input.dim() - normalized_shape.size());
  TORCH_CHECK(expect_equal(statistics.sym_numel(), c10::multiply_integers(leading)) &&
                  statistics.scalar_type() == statistics_type(input),
              norm.name(), "_backward: expected ", name, " as ", norm.name(), "_forward returns it, one ",
              statistics_type(input), " per row, but got ", statistics.sym_sizes(), " of ", statistics.scalar_type());
}

at::ScalarType check_backward(const RowNorm& norm, const Tensor& grad_output, const Tensor& input,
                              c10::SymIntArrayRef normalized_shape, const Tensor& mean, const Tensor& rstd,
                              const Tensor& weight) {
  check(norm, input, normalized_shape, weight, {});
  check_device(norm.name(), "grad_output", grad_output, input);
  check_gradient(norm, grad_output, input);
  if (norm.centered()) check_statistics(norm, mean, "mean", input, normalized_shape);
  check_statistics(norm, rstd, "rstd", input, normalized_shape);
  return gradient_type(input, weight);
}

Gradients backward_meta(const RowNorm& norm, const Tensor& grad_output, const Tensor& input,
                        c10::SymIntArrayRef normalized_shape, const Tensor& mean, const Tensor& rstd,
                        const MaybeTensor& weight, Mask mask) {
  const auto param_type = check_backward(norm, grad_output, input, normalized_shape, mean, rstd, or_undefined(weight));
  return allocate_gradients(input, normalized_shape, param_type, mask);
}

Gradients backward_kernel(const RowNorm& norm, const Tensor& grad_output, const Tensor& input,
                          c10::SymIntArrayRef normalized_shape, const Tensor& mean, const Tensor& rstd,
                          const MaybeTensor& maybe_weight, Mask mask) {
  const Tensor weight = contiguous_or_undefined(or_undefined(maybe_weight));
  const auto param_type = check_backward(norm, grad_output, input, normalized_shape, mean, rstd, weight);
  auto gradients = allocate_gradients(input, normalized_shape, param_type, mask);
  auto& [grad_input, grad_weight, grad_bias] = gradients;
  if (input.numel() == 0) {
    if (grad_weight.defined()) grad_weight.zero_();
    if (grad_bias.defined()) grad_bias.zero_();
    return gradients;
  }
  if (!mask[0] && !mask[1] && !mask[2]) return gradients;
  const Tensor dy = grad_output.contiguous(), x = input.contiguous(), r = rstd.contiguous();
  const Tensor m = contiguous_or_undefined(mean);
  RowNormBackward op{};
  op.grad_output = dy.const_data_ptr();
  op.input = x.const_data_ptr();
  op.mean = data_or_null(m);
  op.rstd = r.const_data_ptr();
  op.weight = data_or_null(weight);
  op.grad_input = mutable_data_or_null(grad_input);
  op.grad_weight = mutable_data_or_null(grad_weight);
  op.grad_bias = mutable_data_or_null(grad_bias);
  op.rows = rstd.numel();
  op.columns = input.numel() / op.rows;
  op.grad_output_strides = op.input_strides = {op.rows, 0, op.columns};
  op.lines = {op.rows, op.columns, op.columns};
  op.weight_offset = weight.defined() ? norm.weight_offset : 0;
  op.statistics = norm.statistics;
  op.dtype = op.sum_dtype = dtype_of(input.scalar_type());
  op.param_dtype = dtype_of(param_type);
  run(op, input.device());
  return gradients;
}

// ------------------------------------------------------------------------------------------------ calls through torch
using LayerNormForwardSignature = Forward(const Tensor& input, c10::SymIntArrayRef normalized_shape,
                                          const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                          double weight_offset);
using RMSNormForwardSignature = std::tuple<Tensor, Tensor>(const Tensor& input, c10::SymIntArrayRef normalized_shape,
                                                           const MaybeTensor& weight, double eps, double weight_offset);
using LayerNormBackwardSignature = Gradients(const Tensor& grad_output, const Tensor& input,
                                             c10::SymIntArrayRef normalized_shape, const Tensor& mean,
                                             const Tensor& rstd, const MaybeTensor& weight, double eps, Mask mask,
                                             double weight_offset);
using RMSNormBackwardSignature = std::tuple<Tensor, Tensor>(const Tensor& grad_output, const Tensor& input,
                                                            c10::SymIntArrayRef normalized_shape, const Tensor& rstd,
                                                            const MaybeTensor& weight, double eps,
                                                            std::array<bool, 2> mask, double weight_offset);

Forward call_forward(const RowNorm& norm, const Tensor& input, c10::SymIntArrayRef normalized_shape,
                     const MaybeTensor& weight, const MaybeTensor& bias) {
  static const auto layer_norm = operator_handle<LayerNormForwardSignature>("normext::layer_norm_forward");
  static const auto rms_norm = operator_handle<RMSNormForwardSignature>("normext::rms_norm_forward");
  if (norm.centered()) return layer_norm.call(input, normalized_shape, weight, bias, norm.eps, norm.weight_offset);
  auto [output, rstd] = rms_norm.call(input, normalized_shape, weight, norm.eps, norm.weight_offset);
  return {std::move(output), Tensor{}, std::move(rstd)};
}

Gradients call_backward(const RowNorm& norm, const Tensor& grad_output, const Tensor& input,
                        c10::SymIntArrayRef normalized_shape, const Tensor& mean, const Tensor& rstd,
                        const MaybeTensor& weight, Mask mask) {
  static const auto layer_norm = operator_handle<LayerNormBackwardSignature>("normext::layer_norm_backward");
  static const auto rms_norm = operator_handle<RMSNormBackwardSignature>("normext::rms_norm_backward");
  if (norm.centered())
    return layer_norm.call(grad_output, input, normalized_shape, mean, rstd, weight, norm.eps, mask,
                           norm.weight_offset);
  auto [grad_input, grad_weight] = rms_norm.call(grad_output, input, normalized_shape, rstd, weight, norm.eps,
                                                 {mask[0], mask[1]}, norm.weight_offset);
  return {std::move(grad_input), std::move(grad_weight), Tensor{}};
}

// ------------------------------------------------------------------------------------------------ derivatives
template <RowStatistics kStatistics>
struct RowNormDerivative {
  static constexpr const char* kName = kStatistics == RowStatistics::centered ? "LayerNormBackward" : "RMSNormBackward";
  double eps, weight_offset;
  int64_t normalized_dims;

  Gradients gradients(const Tensor& grad_output, const Saved& s, Mask mask) const {
    const auto normalized_shape = s.input.sym_sizes().slice(s.input.dim() - normalized_dims);
    return call_backward({kStatistics, eps, weight_offset}, grad_output, s.input, normalized_shape, s.mean, s.rstd,
                         or_none(s.weight), mask);
  }
  void collect(torch::dynamo::autograd::CompiledNodeArgs& args) const {
    args.collect(eps);
    args.collect(weight_offset);
    args.collect(normalized_dims);
  }
};

Normalization normalization(const RowNorm& norm, const Tensor& input, int64_t normalized_dims) {
  std::vector<int64_t> dim(normalized_dims);
  std::iota(dim.begin(), dim.end(), input.dim() - normalized_dims);
  return {input, dim, norm.eps, norm.centered()};
}

struct RowNormBackwardFunction : torch::autograd::Function<RowNormBackwardFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& grad_output, const Tensor& input,
                               const MaybeTensor& weight, const RowNorm& norm, c10::SymIntArrayRef normalized_shape,
                               const MaybeTensor& mean, const Tensor& rstd, Mask mask) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto gradients =
        call_backward(norm, grad_output, input, normalized_shape, or_undefined(mean), rstd, weight, mask);
    ctx->save_for_backward({grad_output, input, or_undefined(weight)});
    ctx->saved_data["statistics"] = static_cast<int64_t>(norm.statistics);
    ctx->saved_data["eps"] = norm.eps;
    ctx->saved_data["weight_offset"] = norm.weight_offset;
    ctx->saved_data["normalized_dims"] = static_cast<int64_t>(normalized_shape.size());
    ctx->saved_data["mask"] = c10::List<bool>({mask[0], mask[1], mask[2]});
    ctx->set_materialize_grads(false);
    return only_defined(gradients);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &grad_output = saved[0], &input = saved[1], &weight = saved[2];
    const RowNorm norm{static_cast<RowStatistics>(ctx->saved_data["statistics"].toInt()),
                       ctx->saved_data["eps"].toDouble(), ctx->saved_data["weight_offset"].toDouble()};
    const auto gradients =
        double_backward(spread(grads, saved_mask(ctx)), grad_output, input, weight,
                        normalization(norm, input, ctx->saved_data["normalized_dims"].toInt()), norm.weight_offset);
    return {gradients.grad_output, gradients.input, gradients.weight, {}, {}, {}, {}, {}};
  }
};

template <RowStatistics kStatistics>
Forward record_forward(const RowNorm& norm, const Tensor& input, c10::SymIntArrayRef normalized_shape,
                       const Tensor& weight, const Tensor& bias) {
  const RowNormDerivative<kStatistics> derivative{norm.eps, norm.weight_offset,
                                                  static_cast<int64_t>(normalized_shape.size())};
  const auto node = make_node(derivative, input, weight, bias);
  auto outputs = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward(norm, input, normalized_shape, or_none(weight), or_none(bias));
  }();
  const auto& [output, mean, rstd] = outputs;
  node->save({input, weight, mean, rstd});
  torch::autograd::set_history(output, node);
  return outputs;
}

Forward forward_autograd(const RowNorm& norm, const Tensor& input, c10::SymIntArrayRef normalized_shape,
                         const MaybeTensor& maybe_weight, const MaybeTensor& maybe_bias) {
  const Tensor weight = or_undefined(maybe_weight), bias = or_undefined(maybe_bias);
  if (!needs_autograd(norm.name(), input, weight, bias)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward(norm, input, normalized_shape, maybe_weight, maybe_bias);
  }
  return norm.centered() ? record_forward<RowStatistics::centered>(norm, input, normalized_shape, weight, bias)
                         : record_forward<RowStatistics::uncentered>(norm, input, normalized_shape, weight, bias);
}

Gradients backward_autograd(const RowNorm& norm, const Tensor& grad_output, const Tensor& input,
                            c10::SymIntArrayRef normalized_shape, const Tensor& mean, const Tensor& rstd,
                            const MaybeTensor& weight, Mask mask) {
  if (have_tangents(grad_output, input, or_undefined(weight))) {
    check_backward(norm, grad_output, input, normalized_shape, mean, rstd, or_undefined(weight));
    const auto dims = static_cast<int64_t>(normalized_shape.size());
    return differentiable_backward(grad_output, input, or_undefined(weight),
                                   normalization(norm, input.to(at::kDouble), dims), normalized_shape, mask,
                                   norm.weight_offset);
  }
  if (!needs_autograd(norm.name(), grad_output, input, or_undefined(weight))) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_backward(norm, grad_output, input, normalized_shape, mean, rstd, weight, mask);
  }
  const auto gradients = spread(
      RowNormBackwardFunction::apply(grad_output, input, weight, norm, normalized_shape, or_none(mean), rstd, mask),
      mask);
  return {gradients[0], gradients[1], gradients[2]};
}

// torch runs both norms in float32 under CUDA's autocast.
Tensor layer_norm_autocast_cuda(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                                const MaybeTensor& bias, double eps, double weight_offset) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCUDA);
  const auto cast = [](const auto& t) { return at::autocast::cached_cast(at::kFloat, t, at::kCUDA); };
  return layer_norm(cast(input), normalized_shape, cast(weight), cast(bias), eps, weight_offset);
}
Tensor rms_norm_autocast_cuda(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                              std::optional<double> eps, double weight_offset) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCUDA);
  const auto cast = [](const auto& t) { return at::autocast::cached_cast(at::kFloat, t, at::kCUDA); };
  return rms_norm(cast(input), normalized_shape, cast(weight), eps, weight_offset);
}

// ------------------------------------------------------------------------------------------------ signatures
Tensor layer_norm_composite(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                            const MaybeTensor& bias, double eps, double weight_offset) {
  if (input.is_mkldnn() && weight_offset == 0)  // opaque to anybody but torch
    return at::layer_norm_symint(input, normalized_shape, weight, bias, eps, false);
  return std::get<0>(call_forward(layer_norm_of(eps, weight_offset), input, normalized_shape, weight, bias));
}

// Without an eps it is the least step of the dtype that is computed in, as in torch.
double given_or_step(std::optional<double> eps, const Tensor& input) {
  const double step = statistics_type(input) == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                            : std::numeric_limits<float>::epsilon();
  return eps.value_or(step);
}
Tensor rms_norm_composite(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                          std::optional<double> eps, double weight_offset) {
  return std::get<0>(call_forward(rms_norm_of(given_or_step(eps, input), weight_offset), input, normalized_shape,
                                  weight, std::nullopt));
}

// kForward and kBackward are of a kind above: kernels, shapes or derivatives.
template <auto kForward>
Forward layer_norm_forward(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                           const MaybeTensor& bias, double eps, double weight_offset) {
  return kForward(layer_norm_of(eps, weight_offset), input, normalized_shape, weight, bias);
}
template <auto kForward>
std::tuple<Tensor, Tensor> rms_norm_forward(const Tensor& input, c10::SymIntArrayRef normalized_shape,
                                            const MaybeTensor& weight, double eps, double weight_offset) {
  auto [output, mean, rstd] = kForward(rms_norm_of(eps, weight_offset), input, normalized_shape, weight, std::nullopt);
  return {std::move(output), std::move(rstd)};
}
template <auto kBackward>
Gradients layer_norm_backward(const Tensor& grad_output, const Tensor& input, c10::SymIntArrayRef normalized_shape,
                              const Tensor& mean, const Tensor& rstd, const MaybeTensor& weight, double eps, Mask mask,
                              double weight_offset) {
  return kBackward(layer_norm_of(eps, weight_offset), grad_output, input, normalized_shape, mean, rstd, weight, mask);
}
template <auto kBackward>
std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad_output, const Tensor& input,
                                             c10::SymIntArrayRef normalized_shape, const Tensor& rstd,
                                             const MaybeTensor& weight, double eps, std::array<bool, 2> mask,
                                             double weight_offset) {
  auto [grad_input, grad_weight, grad_bias] =
      kBackward(rms_norm_of(eps, weight_offset), grad_output, input, normalized_shape, Tensor{}, rstd, weight,
                Mask{mask[0], mask[1], false});
  return {std::move(grad_input), std::move(grad_weight)};
}

template <auto kForward, auto kBackward>
void register_row_norms(torch::Library& m) {
  m.impl("layer_norm_forward", layer_norm_forward<kForward>);
  m.impl("layer_norm_backward", layer_norm_backward<kBackward>);
  m.impl("rms_norm_forward", rms_norm_forward<kForward>);
  m.impl("rms_norm_backward", rms_norm_backward<kBackward>);
}

}  // namespace

Tensor layer_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                  const MaybeTensor& bias, double eps, double weight_offset) {
  static const auto op = operator_handle<decltype(layer_norm)>("normext::layer_norm");
  return op.call(input, normalized_shape, weight, bias, eps, weight_offset);
}
Tensor rms_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                std::optional<double> eps, double weight_offset) {
  static const auto op = operator_handle<decltype(rms_norm)>("normext::rms_norm");
  return op.call(input, normalized_shape, weight, eps, weight_offset);
}

void check_layer_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                      const MaybeTensor& bias, double eps, double weight_offset) {
  check(layer_norm_of(eps, weight_offset), input, normalized_shape, or_undefined(weight), or_undefined(bias));
}
void check_rms_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                    std::optional<double> eps, double weight_offset) {
  check(rms_norm_of(eps.value_or(0), weight_offset), input, normalized_shape, or_undefined(weight), {});
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward_kernel(const Tensor& input, c10::SymIntArrayRef normalized_shape,
                                                             const MaybeTensor& weight, const MaybeTensor& bias,
                                                             double eps) {
  return forward_kernel(layer_norm_of(eps, 0), input, normalized_shape, weight, bias);
}
Gradients layer_norm_backward_kernel(const Tensor& grad_output, const Tensor& input,
                                     c10::SymIntArrayRef normalized_shape, const Tensor& mean, const Tensor& rstd,
                                     const MaybeTensor& weight, Mask mask) {
  return backward_kernel(layer_norm_of(0, 0), grad_output, input, normalized_shape, mean, rstd, weight, mask);
}
std::tuple<Tensor, Tensor> rms_norm_forward_kernel(const Tensor& input, at::IntArrayRef normalized_shape,
                                                   const MaybeTensor& weight, std::optional<double> eps) {
  return rms_norm_forward<forward_kernel>(input, c10::fromIntArrayRefSlow(normalized_shape), weight,
                                          given_or_step(eps, input), 0);
}
std::tuple<Tensor, Tensor> rms_norm_backward_kernel(const Tensor& grad_output, const Tensor& input,
                                                    at::IntArrayRef normalized_shape, const Tensor& rstd,
                                                    const MaybeTensor& weight, std::array<bool, 2> mask) {
  return rms_norm_backward<backward_kernel>(grad_output, input, c10::fromIntArrayRefSlow(normalized_shape), rstd,
                                            weight, 0, mask, 0);
}

TORCH_LIBRARY_IMPL(normext, CompositeImplicitAutograd, m) {
  m.impl("layer_norm", layer_norm_composite);
  m.impl("rms_norm", rms_norm_composite);
  m.impl("check_layer_norm", check_layer_norm);
  m.impl("check_rms_norm", check_rms_norm);
}
TORCH_LIBRARY_IMPL(normext, FuncTorchBatchedDecomposition, m) {
  m.impl("check_layer_norm", check_layer_norm);
  m.impl("check_rms_norm", check_rms_norm);
}
TORCH_LIBRARY_IMPL(normext, AutocastCUDA, m) {
  m.impl("layer_norm", layer_norm_autocast_cuda);
  m.impl("rms_norm", rms_norm_autocast_cuda);
}
TORCH_LIBRARY_IMPL(normext, Autograd, m) { register_row_norms<forward_autograd, backward_autograd>(m); }
TORCH_LIBRARY_IMPL(normext, Meta, m) { register_row_norms<forward_meta, backward_meta>(m); }
TORCH_LIBRARY_IMPL(normext, CPU, m) { register_row_norms<forward_kernel, backward_kernel>(m); }
TORCH_LIBRARY_IMPL(normext, CUDA, m) { register_row_norms<forward_kernel, backward_kernel>(m); }

}  // namespace normext
