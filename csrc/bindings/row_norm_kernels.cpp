// row_norm_kernels.cpp -- from tensors to the ops of csrc/ops: how rows lie, allocation, the call; and shapes alone.
#include "row_norm_skin.h"

namespace normext {

// ------------------------------------------------------------------------------------------------ rows in place
// Where the rows of a tensor lie, each over its last `dims` dimensions; none if more than two strides tell, or if a
// row's elements are apart.
static std::optional<RowStrides> find_strides(const Tensor& tensor, int64_t dims) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t columns = 1, d = tensor.dim();
  while (d-- > tensor.dim() - dims) {
    if (sizes[d] != 1 && strides[d] != columns) return std::nullopt;
    columns *= sizes[d];
  }
  RowStrides rows{1, 0, columns};
  int64_t outer = 1;
  for (; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    if (rows.inner == 1) {
      rows.inner = sizes[d], rows.inner_stride = strides[d];
    } else if (outer == 1 && strides[d] == rows.inner * rows.inner_stride) {
      rows.inner *= sizes[d];
    } else if (outer == 1) {
      outer = sizes[d], rows.outer_stride = strides[d];
    } else if (strides[d] == outer * rows.outer_stride) {
      outer *= sizes[d];
    } else {
      return std::nullopt;
    }
  }
  return rows;
}

struct Rows {
  c10::MaybeOwned<Tensor> tensor;  // undefined where there is none
  RowStrides strides{};

  const void* data() const { return data_or_null(*tensor); }
};

static Rows copied_rows_of(const Tensor& tensor, int64_t dims) {
  auto copy = c10::MaybeOwned<Tensor>::owned(tensor.contiguous());
  const auto strides = find_strides(*copy, dims);
  return {std::move(copy), *strides};
}

// As they lie, or a contiguous copy of them.
static Rows rows_of(const Tensor& tensor, int64_t dims) {
  if (!tensor.defined()) return {c10::MaybeOwned<Tensor>::borrowed(tensor)};
  if (const auto strides = find_strides(tensor, dims)) return {c10::MaybeOwned<Tensor>::borrowed(tensor), *strides};
  return copied_rows_of(tensor, dims);
}

// The same of parameters, whose lines one stride tells apart.
static Rows lines_of(const Tensor& tensor, int64_t dims, int64_t columns) {
  Rows lines = rows_of(tensor, dims);
  if (!tensor.defined() || lines.strides.inner * columns == tensor.numel()) return lines;
  return copied_rows_of(tensor, dims);
}

static ParameterLines parameter_lines(const Rows& weight, const Rows& bias, int64_t rows, int64_t columns) {
  const auto& any = weight.tensor->defined() ? weight : bias;
  const int64_t lines = any.tensor->defined() ? any.tensor->numel() / columns : 1;
  const auto stride = [&](const Rows& p) { return p.tensor->defined() ? p.strides.inner_stride : columns; };
  return {rows / lines, stride(weight), stride(bias)};
}

// ------------------------------------------------------------------------------------------------ allocation
// output and sum contiguous, of input's shape; mean and rstd of shape [*, 1, ...].
static RowNormOutputs allocate(const RowNorm& norm, const RowNormInputs& in) {
  const Tensor& input = in.input;
  c10::SymDimVector statistics(input.sym_sizes());
  std::fill(statistics.end() - static_cast<int64_t>(in.normalized_shape.size()), statistics.end(), 1);
  const auto type = statistics_type(input);
  return {empty(input, input.sym_sizes(), input.scalar_type()),
          in.residual.defined() ? empty(input, input.sym_sizes(), in.residual.scalar_type()) : Tensor{},
          norm.centered() ? empty(input, statistics, type) : Tensor{}, empty(input, statistics, type)};
}

static RowNormGradients allocate(const RowNorm& norm, const RowNormGrads& in, at::ScalarType parameters,
                                 const RowNormMask& mask) {
  const Tensor& input = in.input;
  const auto shape = norm.adaptive() ? in.weight.sym_sizes() : in.normalized_shape;
  const auto data = [&](bool wanted, at::ScalarType type) {
    return wanted ? empty(input, input.sym_sizes(), type) : Tensor{};
  };
  const auto parameter = [&](bool wanted) { return wanted ? empty(input, shape, parameters) : Tensor{}; };
  return {data(mask[0], in.dtype), data(mask[1], input.scalar_type()), parameter(mask[2]), parameter(mask[3])};
}

// ------------------------------------------------------------------------------------------------ kernels and shapes
RowNormOutputs forward_meta(const RowNorm& norm, const RowNormInputs& in) {
  check(norm, in);
  return allocate(norm, in);
}

RowNormGradients backward_meta(const RowNorm& norm, const RowNormGrads& in, const RowNormMask& mask) {
  return allocate(norm, in, check_backward(norm, in, mask), mask);
}

RowNormOutputs forward_kernel(const RowNorm& norm, const RowNormInputs& in) {
  const auto param_type = check(norm, in);
  auto out = allocate(norm, in);
  if (in.input.numel() == 0) {  // rows of no elements have statistics all the same: torch's
    if (out.mean.defined()) out.mean.zero_();
    out.rstd.fill_(std::numeric_limits<double>::quiet_NaN());
    return out;
  }
  const auto dims = static_cast<int64_t>(in.normalized_shape.size());
  const Rows input = rows_of(in.input, dims), residual = rows_of(in.residual, dims);
  const int64_t rows = out.rstd.numel(), columns = in.input.numel() / rows;
  const Rows weight = lines_of(in.weight, dims, columns), bias = lines_of(in.bias, dims, columns);
  RowNormForward op{};
  op.input = input.data();
  op.residual = residual.data();
  op.weight = weight.data();
  op.bias = bias.data();
  op.output = out.output.mutable_data_ptr();
  op.sum = mutable_data_or_null(out.sum);
  op.mean = mutable_data_or_null(out.mean);
  op.rstd = out.rstd.mutable_data_ptr();
  op.rows = rows;
  op.columns = columns;
  op.input_strides = input.strides;
  op.residual_strides = residual.strides;
  op.lines = parameter_lines(weight, bias, rows, columns);
  op.eps = norm.eps;
  op.weight_offset = in.weight.defined() ? norm.weight_offset : 0;
  op.statistics = norm.statistics;
  op.dtype = dtype_of(in.input.scalar_type());
  op.sum_dtype = in.residual.defined() ? dtype_of(in.residual.scalar_type()) : op.dtype;
  op.param_dtype = dtype_of(param_type);
  run(op, in.input.device());
  return out;
}

static void set_zero(const RowNormGradients& gradients) {
  if (gradients.weight.defined()) gradients.weight.zero_();
  if (gradients.bias.defined()) gradients.bias.zero_();
}

RowNormGradients backward_kernel(const RowNorm& norm, const RowNormGrads& in, const RowNormMask& mask) {
  const auto param_type = check_backward(norm, in, mask);
  auto gradients = allocate(norm, in, param_type, mask);
  if (in.input.numel() == 0) set_zero(gradients);
  if (in.input.numel() == 0 || mask == RowNormMask{}) return gradients;
  const auto dims = static_cast<int64_t>(in.normalized_shape.size());
  const Rows grad_output = rows_of(in.grad_output, dims), input = rows_of(in.input, dims);
  const auto grad_sum = contiguous_or_undefined(in.grad_sum), mean = contiguous_or_undefined(in.mean);
  const auto rstd = in.rstd.expect_contiguous();
  const int64_t rows = rstd->numel(), columns = in.input.numel() / rows;
  const Rows weight = lines_of(in.weight, dims, columns);
  RowNormBackward op{};
  op.grad_output = grad_output.data();
  op.grad_sum = data_or_null(*grad_sum);
  op.input = input.data();
  op.mean = data_or_null(*mean);
  op.rstd = rstd->const_data_ptr();
  op.weight = weight.data();
  op.grad_input = mutable_data_or_null(gradients.input);
  op.grad_residual = mutable_data_or_null(gradients.residual);
  op.grad_weight = mutable_data_or_null(gradients.weight);
  op.grad_bias = mutable_data_or_null(gradients.bias);
  op.rows = rows;
  op.columns = columns;
  op.grad_output_strides = grad_output.strides;
  op.input_strides = input.strides;
  op.lines = parameter_lines(weight, weight, rows, columns);
  op.weight_offset = in.weight.defined() ? norm.weight_offset : 0;
  op.statistics = norm.statistics;
  op.dtype = dtype_of(in.dtype);
  op.sum_dtype = dtype_of(in.input.scalar_type());
  op.param_dtype = dtype_of(param_type);
  run(op, in.input.device());
  return gradients;
}

}  // namespace normext
