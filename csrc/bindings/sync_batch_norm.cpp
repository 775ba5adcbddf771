// sync_batch_norm.cpp -- torch's side of BatchNorm over a batch in parts: its halves, between which somebody gathers
// the parts. Derivatives are put together where that is done (normext/synchronized.py).
#include "channel_norm.h"

namespace normext {
namespace {

using Map = std::tuple<Tensor, Tensor, Tensor>;  // output, mean, rstd

// ------------------------------------------------------------------------------------------------ checks, allocation
c10::SymInt check_input(const char* op, const Tensor& input) {
  TORCH_CHECK(input.dim() >= 2, op, ": expected input of at least 2 dimensions, [N, C, *], but got input of size ",
              input.sym_sizes());
  check_input_dtype(op, input);
  return input.sym_size(1);
}

// A vector that all parts have the same of.
void check_vector(const char* op, const char* name, const Tensor& vector, const c10::SymInt& size, at::ScalarType type,
                  const Tensor& input) {
  check_device(op, name, vector, input);
  TORCH_CHECK(expect_equal(vector.sym_sizes(), {size}) && vector.scalar_type() == type, op, ": expected ", name,
              " of size [", size, "] and dtype ", type, ", but got ", vector.sym_sizes(), " of ", vector.scalar_type());
}

void check_moments(const char* op, const Tensor& moments, const Tensor& input) {
  check_vector(op, "moments", moments, 2 * input.sym_size(1) + 1, at::kDouble, input);
}

// Returns the dtype of the parameters.
at::ScalarType check_affine(const char* op, const Tensor& input, const Tensor& weight, const Tensor& bias) {
  check_size("weight", weight, input.sym_size(1));
  check_size("bias", bias, input.sym_size(1));
  return check_parameters(op, input, {{"weight", weight}, {"bias", bias}});
}

void check_gradient(const char* op, const Tensor& grad_output, const Tensor& input, const Tensor& moments,
                    const Tensor& mean, const Tensor& rstd) {
  const auto channels = check_input(op, input);
  check_grad_output(op, grad_output, input);
  check_moments(op, moments, input);
  check_vector(op, "mean", mean, channels, statistics_type(input), input);
  check_vector(op, "rstd", rstd, channels, statistics_type(input), input);
}

Tensor float64(const Tensor& input, const c10::SymInt& size) { return empty(input, size, at::kDouble); }

// The statistics that the map of an empty part returns: the whole batch's, as every other part's map.
void read_statistics(const Tensor& moments, double eps, const Tensor& mean, const Tensor& rstd) {
  const int64_t channels = mean.size(0);
  mean.copy_(moments.narrow(0, 0, channels));
  const Tensor count = moments.narrow(0, 2 * channels, 1).clamp_min(1);
  rstd.copy_((moments.narrow(0, channels, channels) / count + eps).rsqrt());
}

// What the halves of backward share; tensors that are not as kernels take them are held as copies.
struct Backward {
  at::MemoryFormat format;
  Tensor dy, x, moments, mean, rstd;
  BatchNormBackward op{};

  Backward(const Tensor& grad_output, const Tensor& input, const Tensor& m, const Tensor& center, const Tensor& r)
      : format(memory_format(input)),
        dy(grad_output.contiguous(format)),
        x(input.contiguous(format)),
        moments(m.contiguous()),
        mean(center.contiguous()),
        rstd(r.contiguous()) {
    op.grad_output = dy.const_data_ptr();
    op.input = x.const_data_ptr();
    op.moments = moments.const_data_ptr<double>();
    op.mean = mean.const_data_ptr();
    op.rstd = rstd.const_data_ptr();
    op.shape = shape_of(input, format);
    op.training = true;
    op.dtype = op.param_dtype = dtype_of(input.scalar_type());
  }
};

// ------------------------------------------------------------------------------------------------ kernels and shapes
Tensor moments_meta(const Tensor& input) { return float64(input, 2 * check_input("batch_norm_moments", input) + 1); }

Tensor moments_kernel(const Tensor& input) {
  const Tensor moments = moments_meta(input);
  if (input.numel() == 0) return moments.zero_();
  const auto format = memory_format(input);
  const Tensor data = input.contiguous(format);
  BatchNormForward op{};
  op.input = data.const_data_ptr();
  op.found = moments.mutable_data_ptr<double>();
  op.shape = shape_of(input, format);
  op.dtype = op.param_dtype = dtype_of(input.scalar_type());
  run(op, input.device());
  moments.narrow(0, 2 * op.shape.channels, 1).fill_(op.shape.batch * op.shape.plane);
  return moments;
}

Tensor merge_meta(const Tensor& parts) {
  TORCH_CHECK(parts.dim() == 2 && parts.scalar_type() == at::kDouble && expect_other(parts.sym_size(0), 0) &&
                  expect_equal(parts.sym_size(1) % 2, 1),
              "batch_norm_merge: expected parts of size [count, 2 * C + 1] and dtype Double, but got ",
              parts.sym_sizes(), " of ", parts.scalar_type());
  return float64(parts, parts.sym_size(1));
}

Tensor merge_kernel(const Tensor& parts) {
  const Tensor merged = merge_meta(parts), data = parts.contiguous();
  run(BatchNormMerge{data.const_data_ptr<double>(), merged.mutable_data_ptr<double>(), parts.size(1) / 2,
                     parts.size(0)},
      parts.device());
  return merged;
}

Map map_meta(const Tensor& input, const Tensor& moments, const MaybeTensor& weight, const MaybeTensor& bias, double eps,
             const MaybeTensor& residual, ActivationName activation, double slope) {
  const auto channels = check_input("batch_norm_map", input);
  check_moments("batch_norm_map", moments, input);
  check_affine("batch_norm_map", input, or_undefined(weight), or_undefined(bias));
  if (residual) check_residual("batch_norm_map", *residual, input, false);
  activation_of("batch_norm_map", activation, slope);
  TORCH_CHECK_VALUE(eps >= 0, "batch_norm eps must be non-negative, but got ", eps);
  const auto statistic = [&] { return empty(input, channels, statistics_type(input)); };
  return {allocate_like(input), statistic(), statistic()};
}

Map map_kernel(const Tensor& input, const Tensor& maybe_strided, const MaybeTensor& maybe_weight,
               const MaybeTensor& maybe_bias, double eps, const MaybeTensor& maybe_residual, ActivationName activation,
               double slope) {
  const auto outputs = map_meta(input, maybe_strided, maybe_weight, maybe_bias, eps, maybe_residual, activation, slope);
  const auto& [output, mean, rstd] = outputs;
  if (input.numel() == 0) {
    read_statistics(maybe_strided, eps, mean, rstd);
    return outputs;
  }
  const auto format = memory_format(input);
  const auto data = input.expect_contiguous(format), moments = maybe_strided.expect_contiguous();
  const auto residual = contiguous_or_undefined(or_undefined(maybe_residual), format);
  const auto weight = contiguous_or_undefined(or_undefined(maybe_weight));
  const auto bias = contiguous_or_undefined(or_undefined(maybe_bias));
  BatchNormForward op{};
  op.input = data->const_data_ptr();
  op.weight = data_or_null(*weight);
  op.bias = data_or_null(*bias);
  op.residual = data_or_null(*residual);
  op.activation = activation_of("batch_norm_map", activation, slope);
  op.given = moments->const_data_ptr<double>();
  op.output = output.mutable_data_ptr();
  op.mean = mean.mutable_data_ptr();
  op.rstd = rstd.mutable_data_ptr();
  op.shape = shape_of(input, format);
  op.eps = eps;
  op.dtype = dtype_of(input.scalar_type());
  op.param_dtype = dtype_of(check_affine("batch_norm_map", input, *weight, *bias));
  run(op, input.device());
  return outputs;
}

Tensor gradient_sums_meta(const Tensor& grad_output, const Tensor& input, const Tensor& moments, const Tensor& mean,
                          const Tensor& rstd) {
  check_gradient("batch_norm_gradient_sums", grad_output, input, moments, mean, rstd);
  return float64(input, 2 * input.sym_size(1));
}

Tensor gradient_sums_kernel(const Tensor& grad_output, const Tensor& input, const Tensor& moments, const Tensor& mean,
                            const Tensor& rstd) {
  const Tensor sums = gradient_sums_meta(grad_output, input, moments, mean, rstd);
  if (input.numel() == 0) return sums.zero_();
  Backward backward(grad_output, input, moments, mean, rstd);
  backward.op.found = sums.mutable_data_ptr<double>();
  run(backward.op, input.device());
  return sums;
}

Tensor gradient_map_meta(const Tensor& grad_output, const Tensor& input, const Tensor& moments, const Tensor& mean,
                         const Tensor& rstd, const MaybeTensor& weight, const Tensor& sums) {
  check_gradient("batch_norm_gradient_map", grad_output, input, moments, mean, rstd);
  check_vector("batch_norm_gradient_map", "sums", sums, 2 * input.sym_size(1), at::kDouble, input);
  check_affine("batch_norm_gradient_map", input, or_undefined(weight), {});
  return allocate_like(input);
}

Tensor gradient_map_kernel(const Tensor& grad_output, const Tensor& input, const Tensor& moments, const Tensor& mean,
                           const Tensor& rstd, const MaybeTensor& maybe_weight, const Tensor& maybe_strided) {
  const Tensor grad_input = gradient_map_meta(grad_output, input, moments, mean, rstd, maybe_weight, maybe_strided);
  if (input.numel() == 0) return grad_input;
  const auto weight = contiguous_or_undefined(or_undefined(maybe_weight)), sums = maybe_strided.expect_contiguous();
  Backward backward(grad_output, input, moments, mean, rstd);
  backward.op.given = sums->const_data_ptr<double>();
  backward.op.weight = data_or_null(*weight);
  backward.op.grad_input = grad_input.mutable_data_ptr();
  if (weight->defined()) backward.op.param_dtype = dtype_of(weight->scalar_type());
  run(backward.op, input.device());
  return grad_input;
}

void register_kernels(torch::Library& m) {
  m.impl("batch_norm_moments", moments_kernel);
  m.impl("batch_norm_merge", merge_kernel);
  m.impl("batch_norm_map", map_kernel);
  m.impl("batch_norm_gradient_sums", gradient_sums_kernel);
  m.impl("batch_norm_gradient_map", gradient_map_kernel);
}

}  // namespace

TORCH_LIBRARY_IMPL(normext, Meta, m) {
  m.impl("batch_norm_moments", moments_meta);
  m.impl("batch_norm_merge", merge_meta);
  m.impl("batch_norm_map", map_meta);
  m.impl("batch_norm_gradient_sums", gradient_sums_meta);
  m.impl("batch_norm_gradient_map", gradient_map_meta);
}
TORCH_LIBRARY_IMPL(normext, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(normext, CUDA, m) { register_kernels(m); }

}  // namespace normext
