// row_norm.cpp -- the row norms as operators: their signatures, and what is registered for each. The rest is written
// once for all of them, see row_norm_skin.h.
#include "row_norm.h"

#include <ATen/autocast_mode.h>

#include "row_norm_skin.h"

namespace normext {
namespace {

using c10::SymIntArrayRef;
constexpr auto kCentered = RowStatistics::centered, kUncentered = RowStatistics::uncentered;

RowStatistics statistics_of(bool centered) { return centered ? kCentered : kUncentered; }
RowNorm plain(RowStatistics statistics, double eps, double weight_offset) {
  return {RowNormKind::plain, statistics, eps, weight_offset};
}
RowNorm add(RowStatistics statistics, double eps, double weight_offset) {
  return {RowNormKind::add, statistics, eps, weight_offset};
}
RowNorm adaptive(RowStatistics statistics, double eps) { return {RowNormKind::adaptive, statistics, eps, 1.0}; }

// Without an eps it is the least step of the dtype that is computed in, as in torch.
double eps_of(std::optional<double> eps, const Tensor& input) {
  const double step = statistics_type(input) == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                            : std::numeric_limits<float>::epsilon();
  return eps.value_or(step);
}

SymIntArrayRef last_of(const Tensor& input) {
  const auto sizes = input.sym_sizes();
  return sizes.slice(sizes.empty() ? 0 : sizes.size() - 1);
}

// ------------------------------------------------------------------------------------------------ forward operators
// kForward is of a kind: kernels, shapes or derivatives.
template <auto kForward>
std::tuple<Tensor, Tensor, Tensor> layer_norm_forward(const Tensor& input, SymIntArrayRef normalized_shape,
                                                      const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                                      double weight_offset) {
  auto out = kForward(plain(kCentered, eps, weight_offset),
                      {input, {}, or_undefined(weight), or_undefined(bias), normalized_shape});
  return {std::move(out.output), std::move(out.mean), std::move(out.rstd)};
}
template <auto kForward>
std::tuple<Tensor, Tensor> rms_norm_forward(const Tensor& input, SymIntArrayRef normalized_shape,
                                            const MaybeTensor& weight, double eps, double weight_offset) {
  auto out = kForward(plain(kUncentered, eps, weight_offset), {input, {}, or_undefined(weight), {}, normalized_shape});
  return {std::move(out.output), std::move(out.rstd)};
}
template <auto kForward>
std::tuple<Tensor, Tensor, Tensor, Tensor> add_norm_forward(const Tensor& input, const Tensor& residual,
                                                            SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                                                            const MaybeTensor& bias, double eps, double weight_offset,
                                                            bool centered) {
  auto out = kForward(add(statistics_of(centered), eps, weight_offset),
                      {input, residual, or_undefined(weight), or_undefined(bias), normalized_shape});
  return {std::move(out.output), std::move(out.sum), std::move(out.mean), std::move(out.rstd)};
}
template <auto kForward>
std::tuple<Tensor, Tensor, Tensor> adaptive_norm_forward(const Tensor& input, const Tensor& scale,
                                                         const MaybeTensor& shift, double eps, bool centered) {
  auto out = kForward(adaptive(statistics_of(centered), eps), {input, {}, scale, or_undefined(shift), last_of(input)});
  return {std::move(out.output), std::move(out.mean), std::move(out.rstd)};
}

// ------------------------------------------------------------------------------------------------ backward operators
template <auto kBackward>
Gradients layer_norm_backward(const Tensor& grad_output, const Tensor& input, SymIntArrayRef normalized_shape,
                              const Tensor& mean, const Tensor& rstd, const MaybeTensor& weight, double eps, Mask mask,
                              double weight_offset) {
  auto gradients =
      kBackward(plain(kCentered, eps, weight_offset),
                {grad_output, {}, input, mean, rstd, or_undefined(weight), normalized_shape, input.scalar_type()},
                {mask[0], false, mask[1], mask[2]});
  return {std::move(gradients.input), std::move(gradients.weight), std::move(gradients.bias)};
}
template <auto kBackward>
std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad_output, const Tensor& input,
                                             SymIntArrayRef normalized_shape, const Tensor& rstd,
                                             const MaybeTensor& weight, double eps, std::array<bool, 2> mask,
                                             double weight_offset) {
  auto gradients =
      kBackward(plain(kUncentered, eps, weight_offset),
                {grad_output, {}, input, {}, rstd, or_undefined(weight), normalized_shape, input.scalar_type()},
                {mask[0], false, mask[1], false});
  return {std::move(gradients.input), std::move(gradients.weight)};
}
template <auto kBackward>
std::tuple<Tensor, Tensor, Tensor, Tensor> add_norm_backward(const Tensor& grad_output, const MaybeTensor& grad_sum,
                                                             const Tensor& sum, SymIntArrayRef normalized_shape,
                                                             const MaybeTensor& mean, const Tensor& rstd,
                                                             const MaybeTensor& weight, double eps, RowNormMask mask,
                                                             double weight_offset, bool centered) {
  auto gradients = kBackward(add(statistics_of(centered), eps, weight_offset),
                             {grad_output, or_undefined(grad_sum), sum, or_undefined(mean), rstd, or_undefined(weight),
                              normalized_shape, grad_output.scalar_type()},
                             mask);
  return {std::move(gradients.input), std::move(gradients.residual), std::move(gradients.weight),
          std::move(gradients.bias)};
}
template <auto kBackward>
Gradients adaptive_norm_backward(const Tensor& grad_output, const Tensor& input, const MaybeTensor& mean,
                                 const Tensor& rstd, const Tensor& scale, double eps, Mask mask, bool centered) {
  auto gradients =
      kBackward(adaptive(statistics_of(centered), eps),
                {grad_output, {}, input, or_undefined(mean), rstd, scale, last_of(input), input.scalar_type()},
                {mask[0], false, mask[1], mask[2]});
  return {std::move(gradients.input), std::move(gradients.weight), std::move(gradients.bias)};
}

template <auto kForward, auto kBackward>
void register_row_norms(torch::Library& m) {
  m.impl("layer_norm_forward", layer_norm_forward<kForward>);
  m.impl("layer_norm_backward", layer_norm_backward<kBackward>);
  m.impl("rms_norm_forward", rms_norm_forward<kForward>);
  m.impl("rms_norm_backward", rms_norm_backward<kBackward>);
  m.impl("add_norm_forward", add_norm_forward<kForward>);
  m.impl("add_norm_backward", add_norm_backward<kBackward>);
  m.impl("adaptive_norm_forward", adaptive_norm_forward<kForward>);
  m.impl("adaptive_norm_backward", adaptive_norm_backward<kBackward>);
}

// torch.ops.normext.<name>, of the signature of one of the kernels above.
template <auto kKernel>
auto handle(const char* name) {
  return operator_handle<std::remove_pointer_t<decltype(kKernel)>>(name);
}

}  // namespace

// ------------------------------------------------------------------------------------------------ calls through torch
RowNormOutputs call_forward(const RowNorm& norm, const RowNormInputs& in) {
  const auto weight = or_none(in.weight), bias = or_none(in.bias);
  switch (norm.kind) {
    case RowNormKind::add: {
      static const auto op = handle<&add_norm_forward<forward_meta>>("normext::add_norm_forward");
      auto [output, sum, mean, rstd] = op.call(in.input, in.residual, in.normalized_shape, weight, bias, norm.eps,
                                               norm.weight_offset, norm.centered());
      return {std::move(output), std::move(sum), std::move(mean), std::move(rstd)};
    }
    case RowNormKind::adaptive: {
      static const auto op = handle<&adaptive_norm_forward<forward_meta>>("normext::adaptive_norm_forward");
      auto [output, mean, rstd] = op.call(in.input, in.weight, bias, norm.eps, norm.centered());
      return {std::move(output), {}, std::move(mean), std::move(rstd)};
    }
    default: {
      static const auto layer_norm = handle<&layer_norm_forward<forward_meta>>("normext::layer_norm_forward");
      static const auto rms_norm = handle<&rms_norm_forward<forward_meta>>("normext::rms_norm_forward");
      if (norm.centered()) {
        auto [output, mean, rstd] =
            layer_norm.call(in.input, in.normalized_shape, weight, bias, norm.eps, norm.weight_offset);
        return {std::move(output), {}, std::move(mean), std::move(rstd)};
      }
      auto [output, rstd] = rms_norm.call(in.input, in.normalized_shape, weight, norm.eps, norm.weight_offset);
      return {std::move(output), {}, {}, std::move(rstd)};
    }
  }
}

RowNormGradients call_backward(const RowNorm& norm, const RowNormGrads& in, const RowNormMask& mask) {
  const auto weight = or_none(in.weight), mean = or_none(in.mean);
  switch (norm.kind) {
    case RowNormKind::add: {
      static const auto op = handle<&add_norm_backward<backward_meta>>("normext::add_norm_backward");
      auto [input, residual, grad_weight, bias] =
          op.call(in.grad_output, or_none(in.grad_sum), in.input, in.normalized_shape, mean, in.rstd, weight, norm.eps,
                  mask, norm.weight_offset, norm.centered());
      return {std::move(input), std::move(residual), std::move(grad_weight), std::move(bias)};
    }
    case RowNormKind::adaptive: {
      static const auto op = handle<&adaptive_norm_backward<backward_meta>>("normext::adaptive_norm_backward");
      auto [input, scale, shift] = op.call(in.grad_output, in.input, mean, in.rstd, in.weight, norm.eps,
                                           {mask[0], mask[2], mask[3]}, norm.centered());
      return {std::move(input), {}, std::move(scale), std::move(shift)};
    }
    default: {
      static const auto layer_norm = handle<&layer_norm_backward<backward_meta>>("normext::layer_norm_backward");
      static const auto rms_norm = handle<&rms_norm_backward<backward_meta>>("normext::rms_norm_backward");
      if (norm.centered()) {
        auto [input, grad_weight, bias] =
            layer_norm.call(in.grad_output, in.input, in.normalized_shape, in.mean, in.rstd, weight, norm.eps,
                            {mask[0], mask[2], mask[3]}, norm.weight_offset);
        return {std::move(input), {}, std::move(grad_weight), std::move(bias)};
      }
      auto [input, grad_weight] = rms_norm.call(in.grad_output, in.input, in.normalized_shape, in.rstd, weight,
                                                norm.eps, {mask[0], mask[2]}, norm.weight_offset);
      return {std::move(input), {}, std::move(grad_weight), {}};
    }
  }
}

// ------------------------------------------------------------------------------------------------ public operators
namespace {

using Pair = std::tuple<Tensor, Tensor>;  // output and sum

Tensor layer_norm_composite(const Tensor& input, SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                            const MaybeTensor& bias, double eps, double weight_offset) {
  if (input.is_mkldnn() && weight_offset == 0)  // opaque to anybody but torch
    return at::layer_norm_symint(input, normalized_shape, weight, bias, eps, false);
  return call_forward(plain(kCentered, eps, weight_offset),
                      {input, {}, or_undefined(weight), or_undefined(bias), normalized_shape})
      .output;
}
Tensor rms_norm_composite(const Tensor& input, SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                          std::optional<double> eps, double weight_offset) {
  return call_forward(plain(kUncentered, eps_of(eps, input), weight_offset),
                      {input, {}, or_undefined(weight), {}, normalized_shape})
      .output;
}

Pair add_layer_norm_composite(const Tensor& input, const Tensor& residual, SymIntArrayRef normalized_shape,
                              const MaybeTensor& weight, const MaybeTensor& bias, double eps, double weight_offset) {
  auto out = call_forward(add(kCentered, eps, weight_offset),
                          {input, residual, or_undefined(weight), or_undefined(bias), normalized_shape});
  return {std::move(out.output), std::move(out.sum)};
}
Pair add_rms_norm_composite(const Tensor& input, const Tensor& residual, SymIntArrayRef normalized_shape,
                            const MaybeTensor& weight, std::optional<double> eps, double weight_offset) {
  auto out = call_forward(add(kUncentered, eps_of(eps, input), weight_offset),
                          {input, residual, or_undefined(weight), {}, normalized_shape});
  return {std::move(out.output), std::move(out.sum)};
}

// With as many dimensions as the input: [B, D] is [B, 1, D] for an input of [B, T, D].
Tensor aligned(const Tensor& parameter, const Tensor& input) {
  if (!parameter.defined() || parameter.dim() == input.dim()) return parameter;
  c10::SymDimVector sizes(parameter.sym_sizes());
  sizes.insert(sizes.end() - 1, input.dim() - parameter.dim(), 1);
  return parameter.view_symint(sizes);
}

// How many of the leading dimensions an aligned parameter varies along, up to the last of them.
int64_t varying_dims(const Tensor& parameter) {
  if (!parameter.defined()) return 0;
  int64_t dims = parameter.dim() - 1;
  while (dims > 0 && is_one(parameter.sym_size(dims - 1))) --dims;
  return dims;
}

// The sizes of an aligned parameter that varies along that many of the input's leading dimensions.
c10::SymDimVector sizes_along(const Tensor& input, int64_t dims) {
  c10::SymDimVector sizes(input.dim(), 1);
  std::copy_n(input.sym_sizes().begin(), dims, sizes.begin());
  sizes.back() = input.sym_sizes().back();
  return sizes;
}

// Whether it has them but for those along which it does not vary.
bool must_be_expanded(const Tensor& parameter, const c10::SymDimVector& sizes) {
  if (!parameter.defined()) return false;
  for (size_t d = 0; d + 1 < sizes.size(); ++d)
    if (is_one(parameter.sym_size(d)) && !is_one(sizes[d])) return true;
  return false;
}

Tensor adaptive_composite(const RowNorm& norm, const Tensor& input, const Tensor& scale, const Tensor& shift) {
  check_adaptive(norm, input, scale, shift);
  Tensor s = aligned(scale, input), b = aligned(shift, input);
  const auto sizes = sizes_along(input, std::max(varying_dims(s), varying_dims(b)));
  if (must_be_expanded(s, sizes) || must_be_expanded(b, sizes)) {
    // The gradient is summed by autograd, over what the parameter was expanded along: in float32, rounded once.
    const auto expanded = [&](const Tensor& parameter) {
      return parameter.defined()
                 ? parameter.to(at::promote_types(parameter.scalar_type(), at::kFloat)).expand_symint(sizes)
                 : parameter;
    };
    s = expanded(s);
    b = expanded(b);
  }
  return call_forward(norm, {input, {}, s, b, last_of(input)}).output;
}
Tensor adaptive_layer_norm_composite(const Tensor& input, const Tensor& scale, const Tensor& shift, double eps) {
  return adaptive_composite(adaptive(kCentered, eps), input, scale, shift);
}
Tensor adaptive_rms_norm_composite(const Tensor& input, const Tensor& scale, const MaybeTensor& shift,
                                   std::optional<double> eps) {
  return adaptive_composite(adaptive(kUncentered, eps_of(eps, input)), input, scale, or_undefined(shift));
}

// ------------------------------------------------------------------------------------------------ autocast
// torch runs the row norms in float32 under CUDA's autocast.
template <auto function, class... Arguments>
auto in_float32(const Arguments&... arguments) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCUDA);
  const auto cast = []<class T>(const T& t) {
    if constexpr (std::is_same_v<T, Tensor> || std::is_same_v<T, MaybeTensor>)
      return at::autocast::cached_cast(at::kFloat, t, at::kCUDA);
    else
      return t;
  };
  return function(cast(arguments)...);
}

// The same with the function's own signature, which is what torch reads of a kernel.
template <auto function>
struct Autocast;
template <class Return, class... Arguments, Return (*function)(Arguments...)>
struct Autocast<function> {
  static Return call(Arguments... arguments) { return in_float32<function>(arguments...); }
};

}  // namespace

Tensor layer_norm(const Tensor& input, SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                  const MaybeTensor& bias, double eps, double weight_offset) {
  static const auto op = operator_handle<decltype(layer_norm)>("normext::layer_norm");
  return op.call(input, normalized_shape, weight, bias, eps, weight_offset);
}
Tensor rms_norm(const Tensor& input, SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                std::optional<double> eps, double weight_offset) {
  static const auto op = operator_handle<decltype(rms_norm)>("normext::rms_norm");
  return op.call(input, normalized_shape, weight, eps, weight_offset);
}
Pair add_layer_norm(const Tensor& input, const Tensor& residual, SymIntArrayRef normalized_shape,
                    const MaybeTensor& weight, const MaybeTensor& bias, double eps, double weight_offset) {
  static const auto op = operator_handle<decltype(add_layer_norm)>("normext::add_layer_norm");
  return op.call(input, residual, normalized_shape, weight, bias, eps, weight_offset);
}
Pair add_rms_norm(const Tensor& input, const Tensor& residual, SymIntArrayRef normalized_shape,
                  const MaybeTensor& weight, std::optional<double> eps, double weight_offset) {
  static const auto op = operator_handle<decltype(add_rms_norm)>("normext::add_rms_norm");
  return op.call(input, residual, normalized_shape, weight, eps, weight_offset);
}
Tensor adaptive_layer_norm(const Tensor& input, const Tensor& scale, const Tensor& shift, double eps) {
  static const auto op = operator_handle<decltype(adaptive_layer_norm)>("normext::adaptive_layer_norm");
  return op.call(input, scale, shift, eps);
}
Tensor adaptive_rms_norm(const Tensor& input, const Tensor& scale, const MaybeTensor& shift,
                         std::optional<double> eps) {
  static const auto op = operator_handle<decltype(adaptive_rms_norm)>("normext::adaptive_rms_norm");
  return op.call(input, scale, shift, eps);
}

void check_layer_norm(const Tensor& input, SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                      const MaybeTensor& bias, double, double) {
  check(plain(kCentered, 0, 0), {input, {}, or_undefined(weight), or_undefined(bias), normalized_shape});
}
void check_rms_norm(const Tensor& input, SymIntArrayRef normalized_shape, const MaybeTensor& weight,
                    std::optional<double>, double) {
  check(plain(kUncentered, 0, 0), {input, {}, or_undefined(weight), {}, normalized_shape});
}
void check_add_layer_norm(const Tensor& input, const Tensor& residual, SymIntArrayRef normalized_shape,
                          const MaybeTensor& weight, const MaybeTensor& bias, double, double) {
  check(add(kCentered, 0, 0), {input, residual, or_undefined(weight), or_undefined(bias), normalized_shape});
}
void check_add_rms_norm(const Tensor& input, const Tensor& residual, SymIntArrayRef normalized_shape,
                        const MaybeTensor& weight, std::optional<double>, double) {
  check(add(kUncentered, 0, 0), {input, residual, or_undefined(weight), {}, normalized_shape});
}
void check_adaptive_layer_norm(const Tensor& input, const Tensor& scale, const Tensor& shift, double) {
  check_adaptive(adaptive(kCentered, 0), input, scale, shift);
}
void check_adaptive_rms_norm(const Tensor& input, const Tensor& scale, const MaybeTensor& shift,
                             std::optional<double>) {
  check_adaptive(adaptive(kUncentered, 0), input, scale, or_undefined(shift));
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward_kernel(const Tensor& input, SymIntArrayRef normalized_shape,
                                                             const MaybeTensor& weight, const MaybeTensor& bias,
                                                             double eps) {
  return layer_norm_forward<forward_kernel>(input, normalized_shape, weight, bias, eps, 0);
}
Gradients layer_norm_backward_kernel(const Tensor& grad_output, const Tensor& input, SymIntArrayRef normalized_shape,
                                     const Tensor& mean, const Tensor& rstd, const MaybeTensor& weight, Mask mask) {
  return layer_norm_backward<backward_kernel>(grad_output, input, normalized_shape, mean, rstd, weight, 0, mask, 0);
}
std::tuple<Tensor, Tensor> rms_norm_forward_kernel(const Tensor& input, at::IntArrayRef normalized_shape,
                                                   const MaybeTensor& weight, std::optional<double> eps) {
  return rms_norm_forward<forward_kernel>(input, c10::fromIntArrayRefSlow(normalized_shape), weight, eps_of(eps, input),
                                          0);
}
std::tuple<Tensor, Tensor> rms_norm_backward_kernel(const Tensor& grad_output, const Tensor& input,
                                                    at::IntArrayRef normalized_shape, const Tensor& rstd,
                                                    const MaybeTensor& weight, std::array<bool, 2> mask) {
  return rms_norm_backward<backward_kernel>(grad_output, input, c10::fromIntArrayRefSlow(normalized_shape), rstd,
                                            weight, 0, mask, 0);
}

// ------------------------------------------------------------------------------------------------ registration
// The norms: each has a public operator, a kernel, and a check of its arguments, named after it.
#define NORMEXT_ROW_NORMS(_) \
  _(layer_norm)              \
  _(rms_norm)                \
  _(add_layer_norm)          \
  _(add_rms_norm)            \
  _(adaptive_layer_norm)     \
  _(adaptive_rms_norm)

TORCH_LIBRARY_IMPL(normext, CompositeImplicitAutograd, m) {
#define NORMEXT_IMPL(name)         \
  m.impl(#name, name##_composite); \
  m.impl("check_" #name, check_##name);
  NORMEXT_ROW_NORMS(NORMEXT_IMPL)
#undef NORMEXT_IMPL
}
TORCH_LIBRARY_IMPL(normext, FuncTorchBatchedDecomposition, m) {
#define NORMEXT_IMPL(name) m.impl("check_" #name, check_##name);
  NORMEXT_ROW_NORMS(NORMEXT_IMPL)
#undef NORMEXT_IMPL
}
TORCH_LIBRARY_IMPL(normext, AutocastCUDA, m) {
#define NORMEXT_IMPL(name) m.impl(#name, Autocast<&name>::call);
  NORMEXT_ROW_NORMS(NORMEXT_IMPL)
#undef NORMEXT_IMPL
}
TORCH_LIBRARY_IMPL(normext, Autograd, m) { register_row_norms<forward_autograd, backward_autograd>(m); }
TORCH_LIBRARY_IMPL(normext, Meta, m) { register_row_norms<forward_meta, backward_meta>(m); }
TORCH_LIBRARY_IMPL(normext, CPU, m) { register_row_norms<forward_kernel, backward_kernel>(m); }
TORCH_LIBRARY_IMPL(normext, CUDA, m) { register_row_norms<forward_kernel, backward_kernel>(m); }

}  // namespace normext
