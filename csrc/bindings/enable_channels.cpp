// enable_channels.cpp -- torch's operators for BatchNorm, and so for InstanceNorm, computed by normext's kernels.
#include "batch_norm.h"
#include "enable.h"

namespace normext {
namespace {

using BatchNorm = std::tuple<Tensor, Tensor, Tensor>;                     // output, mean, rstd
using BatchNormWithReserve = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // and what cuDNN keeps for its backward

// A reserve that torch would never make: what was saved with it is for our backward alone.
constexpr auto kOurReserve = at::kChar;

struct Arguments {
  const Tensor& input;
  const MaybeTensor &weight, &bias, &running_mean, &running_var;
};

bool has(const MaybeTensor& tensor) { return tensor && tensor->defined(); }

// Whether input has channels, and what belongs to them is theirs. `parameters` becomes the dtype of that.
bool takes_channels(const Arguments& a, at::ScalarType& parameters) {
  if (!takes_dtype(a.input) || a.input.dim() < 2 || a.input.numel() == 0) return false;
  const auto fits = [channels = a.input.size(1)](const MaybeTensor& t) { return !has(t) || t->numel() == channels; };
  return fits(a.weight) && fits(a.bias) && fits(a.running_mean) && fits(a.running_var) &&
         takes_parameters(a.input, parameters, a.weight, a.bias, a.running_mean, a.running_var);
}

bool takes(const Arguments& a, bool training, double eps, at::ScalarType& parameters) {
  if (!takes_channels(a, parameters)) return false;
  if (!training) return has(a.running_mean) && has(a.running_var) && eps >= 0;
  return has(a.running_mean) == has(a.running_var) && a.input.numel() > a.input.size(1) && eps > 0;
}

// In evaluation torch saves empty statistics, and backward reads the running ones.
BatchNorm forward(const Arguments& a, bool training, double momentum, double eps, at::ScalarType saved) {
  auto [output, mean, rstd, var] =
      batch_norm_forward_kernel(a.input, a.running_mean, a.running_var, a.weight, a.bias, training, eps);
  if (!training)
    return {std::move(output), empty(a.input, c10::SymInt(0), saved), empty(a.input, c10::SymInt(0), saved)};
  if (has(a.running_mean))
    batch_norm_update_stats_kernel(*a.running_mean, *a.running_var, mean, var, a.input.numel() / a.input.size(1),
                                   momentum);
  return {std::move(output), as_type(mean, saved), as_type(rstd, saved)};
}

struct BackwardArguments {
  const Tensor &grad_output, &input;
  const MaybeTensor &weight, &running_mean, &running_var, &save_mean, &save_rstd;
  bool training;
  double eps;

  const MaybeTensor& mean() const { return training ? save_mean : running_mean; }
};

bool takes(const BackwardArguments& a) {
  at::ScalarType parameters{};
  const MaybeTensor none;
  const Arguments channels{a.input, a.weight, none, none, none};
  if (!takes_channels(channels, parameters) || !takes_grad_output(a.input, a.grad_output)) return false;
  return takes_saved(a.input, or_undefined(a.mean()), a.input.size(1)) &&
         takes_saved(a.input, or_undefined(a.training ? a.save_rstd : a.running_var), a.input.size(1));
}

Gradients backward(const BackwardArguments& a, Mask mask) {
  const auto type = statistics_type(a.input);
  const Tensor mean = as_type(*a.mean(), type);
  const Tensor rstd = a.training ? as_type(*a.save_rstd, type) : rstd_of(as_type(*a.running_var, type), a.eps);
  auto [grad_input, grad_weight, grad_bias] =
      batch_norm_backward_kernel(a.grad_output, a.input, mean, rstd, a.weight, a.training, a.eps, mask);
  const auto parameters = has(a.weight) ? a.weight->scalar_type() : a.mean()->scalar_type();
  return {std::move(grad_input), as_type(grad_weight, parameters), as_type(grad_bias, parameters)};
}

// ------------------------------------------------------------------------------------------------ torch's operators
BatchNorm native_batch_norm(c10::DispatchKeySet keys, const Tensor& input, const MaybeTensor& weight,
                            const MaybeTensor& bias, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                            bool training, double momentum, double eps) {
  const Arguments a{input, weight, bias, running_mean, running_var};
  at::ScalarType parameters{};
  if (!takes(a, training, eps, parameters))
    return call_torch<&native_batch_norm>(keys, input, weight, bias, running_mean, running_var, training, momentum,
                                          eps);
  return forward(a, training, momentum, eps, saved_type(input, parameters));
}

BatchNorm native_batch_norm_legit(c10::DispatchKeySet keys, const Tensor& input, const MaybeTensor& weight,
                                  const MaybeTensor& bias, Tensor& running_mean, Tensor& running_var, bool training,
                                  double momentum, double eps) {
  const MaybeTensor mean = running_mean, var = running_var;
  const Arguments a{input, weight, bias, mean, var};
  at::ScalarType parameters{};
  if (!takes(a, training, eps, parameters))
    return call_torch<&native_batch_norm_legit>(keys, input, weight, bias, running_mean, running_var, training,
                                                momentum, eps);
  return forward(a, training, momentum, eps, saved_type(input, parameters));
}

BatchNorm native_batch_norm_legit_no_stats(c10::DispatchKeySet keys, const Tensor& input, const MaybeTensor& weight,
                                           const MaybeTensor& bias, bool training, double momentum, double eps) {
  const MaybeTensor none;
  const Arguments a{input, weight, bias, none, none};
  at::ScalarType parameters{};
  if (!takes(a, training, eps, parameters))
    return call_torch<&native_batch_norm_legit_no_stats>(keys, input, weight, bias, training, momentum, eps);
  return forward(a, training, momentum, eps, saved_type(input, parameters));
}

Gradients native_batch_norm_backward(c10::DispatchKeySet keys, const Tensor& grad_output, const Tensor& input,
                                     const MaybeTensor& weight, const MaybeTensor& running_mean,
                                     const MaybeTensor& running_var, const MaybeTensor& save_mean,
                                     const MaybeTensor& save_rstd, bool training, double eps, Mask mask) {
  const BackwardArguments a{grad_output, input, weight, running_mean, running_var, save_mean, save_rstd, training, eps};
  if (!takes(a))
    return call_torch<&native_batch_norm_backward>(keys, grad_output, input, weight, running_mean, running_var,
                                                   save_mean, save_rstd, training, eps, mask);
  return backward(a, mask);
}

// ------------------------------------------------------------------------------------------------ with a reserve
// What our forward saved cuDNN could not read, without its reserve: the backward kernels stay on CUDA, for that alone.
bool takes_reserve(const Tensor& reserve) { return reserve.scalar_type() == kOurReserve || is_enabled("batch_norm"); }

BatchNormWithReserve with_reserve(const BatchNorm& outputs) {
  const auto& [output, mean, rstd] = outputs;
  const bool saved_for_cudnn = output.is_cuda() && mean.numel() > 0;
  return {output, mean, rstd, empty(output, c10::SymInt(0), saved_for_cudnn ? kOurReserve : at::kByte)};
}

BatchNormWithReserve batch_norm_with_update(c10::DispatchKeySet keys, const Tensor& input, const MaybeTensor& weight,
                                            const MaybeTensor& bias, Tensor& running_mean, Tensor& running_var,
                                            double momentum, double eps) {
  const MaybeTensor mean = running_mean, var = running_var;
  const Arguments a{input, weight, bias, mean, var};
  at::ScalarType parameters{};
  if (!takes(a, true, eps, parameters))
    return call_torch<&batch_norm_with_update>(keys, input, weight, bias, running_mean, running_var, momentum, eps);
  return with_reserve(forward(a, true, momentum, eps, saved_type(input, parameters)));
}

Gradients batch_norm_backward(c10::DispatchKeySet keys, const Tensor& grad_output, const Tensor& input,
                              const Tensor& weight, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                              const MaybeTensor& save_mean, const MaybeTensor& save_rstd, bool training, double eps,
                              Mask mask, const Tensor& reserve) {
  const MaybeTensor maybe_weight = or_none(weight);
  const BackwardArguments a{grad_output, input,     maybe_weight, running_mean, running_var,
                            save_mean,   save_rstd, training,     eps};
  if (!takes_reserve(reserve) || !takes(a))
    return call_torch<&batch_norm_backward>(keys, grad_output, input, weight, running_mean, running_var, save_mean,
                                            save_rstd, training, eps, mask, reserve);
  return backward(a, mask);
}

BatchNormWithReserve cudnn_batch_norm(c10::DispatchKeySet keys, const Tensor& input, const Tensor& weight,
                                      const MaybeTensor& bias, const MaybeTensor& running_mean,
                                      const MaybeTensor& running_var, bool training, double momentum, double eps) {
  const MaybeTensor maybe_weight = or_none(weight);
  const Arguments a{input, maybe_weight, bias, running_mean, running_var};
  at::ScalarType parameters{};
  if (!takes(a, training, eps, parameters))
    return call_torch<&cudnn_batch_norm>(keys, input, weight, bias, running_mean, running_var, training, momentum, eps);
  return with_reserve(forward(a, training, momentum, eps, parameters));  // cuDNN saves in its weight's dtype
}

Gradients cudnn_batch_norm_backward(c10::DispatchKeySet keys, const Tensor& input, const Tensor& grad_output,
                                    const Tensor& weight, const MaybeTensor& running_mean,
                                    const MaybeTensor& running_var, const MaybeTensor& save_mean,
                                    const MaybeTensor& save_rstd, double eps, const Tensor& reserve) {
  const MaybeTensor maybe_weight = or_none(weight);
  const BackwardArguments a{grad_output, input,     maybe_weight, running_mean, running_var,
                            save_mean,   save_rstd, true,         eps};
  if (!takes_reserve(reserve) || !takes(a))
    return call_torch<&cudnn_batch_norm_backward>(keys, input, grad_output, weight, running_mean, running_var,
                                                  save_mean, save_rstd, eps, reserve);
  return backward(a, {true, true, true});
}

}  // namespace

std::vector<Replacement> replace_channel_norms() {
  const char* const norm = "batch_norm";
  return {
      replace<&native_batch_norm>(norm, "native_batch_norm"),
      replace<&native_batch_norm_backward>(norm, "native_batch_norm_backward"),
      replace<&native_batch_norm_legit>(norm, "_native_batch_norm_legit"),
      replace<&native_batch_norm_legit_no_stats>(norm, "_native_batch_norm_legit", "no_stats"),
      replace<&batch_norm_with_update>(norm, "_batch_norm_with_update"),
      replace<&batch_norm_backward>(norm, "batch_norm_backward", "", Where::both, Where::cuda),
      replace<&cudnn_batch_norm>(norm, "cudnn_batch_norm", "", Where::cuda),
      replace<&cudnn_batch_norm_backward>(norm, "cudnn_batch_norm_backward", "", Where::cuda, Where::cuda),
  };
}

}  // namespace normext
