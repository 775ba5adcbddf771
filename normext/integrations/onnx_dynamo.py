"""Translations for ``torch.onnx.export(dynamo=True)`` of the operators that an exported program is left with.

Half types are computed in float32: all but LayerNorm by casts, it because ONNX defines it so.
"""

from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18
from torch.onnx._internal.exporter._torchlib._torchlib_registry import onnx_impl

from normext.activations import SLOPE

Value = Any  # ir.Value
op: Any = opset18  # typed for numbers, not for a graph's values


def _statistics_type(input: Value) -> ir.DataType:
    """Normext keeps statistics in float64 for float64 inputs, in float32 for all others."""
    return ir.DataType.DOUBLE if input.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT


def _cast(value: Value, dtype: ir.DataType) -> Value:
    return value if value.dtype == dtype else op.Cast(value, to=dtype)


def _or_filled(given: Value | None, value: float, shape: Value, dtype: ir.DataType) -> Value:
    """A parameter in the dtype that the norm is computed in, or what stands for it where there is none."""
    return op.Expand(op.Constant(value=ir.tensor(value, dtype)), shape) if given is None else _cast(given, dtype)


def _rounded(output: Value, computed: ir.DataType, input: Value) -> Value:
    """The output, which does not know its dtype yet, in input's."""
    return output if computed == input.dtype else op.Cast(output, to=input.dtype)


def _offset(weight: Value | None, weight_offset: float, computed: ir.DataType) -> Value | None:
    """The weight with its offset, which is added in the dtype that is computed in."""
    if weight is None or weight_offset == 0:
        return weight
    return op.Add(_cast(weight, computed), op.Constant(value=ir.tensor(weight_offset, computed)))


def layer_norm_forward(
    input: Value,
    normalized_shape: list[int],
    weight: Value | None,
    bias: Value | None,
    eps: float,
    weight_offset: float = 0.0,
) -> tuple[Value, Value, Value]:
    """``normext::layer_norm_forward``, which ``normext::layer_norm`` decomposes into."""
    axis = -len(normalized_shape)
    computed = next((p for p in (weight, bias) if p is not None), input).dtype
    if weight_offset != 0:
        computed = _statistics_type(input)
    weight = _or_filled(_offset(weight, weight_offset, computed), 1.0, op.Shape(input, start=axis), computed)
    bias = None if bias is None else _cast(bias, computed)
    output, mean, rstd = op.LayerNormalization(_cast(input, computed), weight, bias, axis=axis, epsilon=eps)
    kept = _statistics_type(input)  # ONNX's are float32, whatever its input
    return _rounded(output, computed, input), op.Cast(mean, to=kept), op.Cast(rstd, to=kept)


def rms_norm_forward(
    input: Value, normalized_shape: list[int], weight: Value | None, eps: float, weight_offset: float = 0.0
) -> tuple[Value, Value]:
    """``normext::rms_norm_forward``, which ``normext::rms_norm`` decomposes into."""
    computed = _statistics_type(input)
    x = _cast(input, computed)
    axes = op.Constant(value_ints=list(range(-len(normalized_shape), 0)))
    mean_square = op.ReduceMean(op.Mul(x, x), axes)
    rstd = op.Reciprocal(op.Sqrt(op.Add(mean_square, op.Constant(value=ir.tensor(eps, computed)))))
    output = op.Mul(x, rstd)
    if weight is not None:
        output = op.Mul(output, _cast(_offset(weight, weight_offset, computed), computed))
    return _rounded(output, computed, input), rstd


def _normalized(x: Value, dims: int, eps: float, computed: ir.DataType, centered: bool) -> tuple[Value, Value, Value]:
    """x̂ over the last dimensions, mean and rstd; where there is no mean, rstd stands in its place: nothing reads it."""
    if centered:
        ones = op.Expand(op.Constant(value=ir.tensor(1.0, computed)), op.Shape(x, start=-dims))
        output, mean, rstd = op.LayerNormalization(x, ones, None, axis=-dims, epsilon=eps)
        return output, op.Cast(mean, to=computed), op.Cast(rstd, to=computed)  # ONNX's are float32
    mean_square = op.ReduceMean(op.Mul(x, x), op.Constant(value_ints=list(range(-dims, 0))))
    rstd = op.Reciprocal(op.Sqrt(op.Add(mean_square, op.Constant(value=ir.tensor(eps, computed)))))
    return op.Mul(x, rstd), op.Identity(rstd), rstd


def _affine(output: Value, weight: Value | None, bias: Value | None, offset: float, computed: ir.DataType) -> Value:
    if weight is not None:
        output = op.Mul(output, _cast(_offset(weight, offset, computed), computed))
    return output if bias is None else op.Add(output, _cast(bias, computed))


def add_norm_forward(
    input: Value,
    residual: Value,
    normalized_shape: list[int],
    weight: Value | None,
    bias: Value | None,
    eps: float,
    weight_offset: float,
    centered: bool,
) -> tuple[Value, Value, Value, Value]:
    """``normext::add_norm_forward``, which ``normext::add_layer_norm`` and ``add_rms_norm`` decompose into."""
    computed = _statistics_type(input)
    total = _rounded(op.Add(_cast(input, computed), _cast(residual, computed)), computed, residual)
    x = total if residual.dtype == computed else op.Cast(total, to=computed)
    output, mean, rstd = _normalized(x, len(normalized_shape), eps, computed, centered)
    output = _affine(output, weight, bias, weight_offset, computed)
    return _rounded(output, computed, input), total, mean, rstd


def adaptive_norm_forward(
    input: Value, scale: Value, shift: Value | None, eps: float, centered: bool
) -> tuple[Value, Value, Value]:
    """``normext::adaptive_norm_forward``, which the adaptive norms decompose into."""
    computed = _statistics_type(input)
    output, mean, rstd = _normalized(_cast(input, computed), 1, eps, computed, centered)
    return _rounded(_affine(output, scale, shift, 1.0, computed), computed, input), mean, rstd


def _followed(z: Value, residual: Value | None, activation: str | None, slope: float, computed: ir.DataType) -> Value:
    if residual is not None:
        z = op.Add(z, _cast(residual, computed))
    match activation:
        case None:
            return z
        case "relu":
            return op.Relu(z)
        case "leaky_relu":  # onnxruntime has no LeakyRelu of float64
            zero, factor = (op.Constant(value=ir.tensor(value, computed)) for value in (0.0, slope))
            return op.Where(op.Less(z, zero), op.Mul(z, factor), z)
        case "silu":
            return op.Mul(z, op.Sigmoid(z))
    raise ValueError(f"unknown activation: {activation}")


def batch_norm_forward(
    input: Value,
    running_mean: Value | None,
    running_var: Value | None,
    weight: Value | None,
    bias: Value | None,
    training: bool,
    eps: float,
    residual: Value | None = None,
    activation: str | None = None,
    slope: float = SLOPE,
) -> tuple[Value, Value, Value, Value]:
    """``normext::batch_norm_forward``, which ``normext::batch_norm`` decomposes into."""
    computed = _statistics_type(input)
    x = _cast(input, computed)
    if training:  # ONNX's own training mode is not for this: onnxruntime then writes to what it is given
        axes = op.Constant(value_ints=[0, *range(2, len(input.shape))])
        centered = op.Sub(x, op.ReduceMean(x, axes))
        mean = op.ReduceMean(x, axes, keepdims=False)
        var = variance = op.ReduceMean(op.Mul(centered, centered), axes, keepdims=False)
    else:
        mean, variance = _cast(running_mean, computed), _cast(running_var, computed)
        var = op.Expand(mean, op.Constant(value_ints=[0]))
    channels = op.Shape(input, start=1, end=2)
    weight = _or_filled(weight, 1.0, channels, computed)
    bias = _or_filled(bias, 0.0, channels, computed)
    output = op.BatchNormalization(x, weight, bias, mean, variance, epsilon=eps)
    output = _followed(output, residual, activation, slope, computed)
    rstd = op.Reciprocal(op.Sqrt(op.Add(variance, op.Constant(value=ir.tensor(eps, computed)))))
    return _rounded(output, computed, input), op.Identity(mean), rstd, var


def group_norm_forward(
    input: Value,
    num_groups: int,
    weight: Value | None,
    bias: Value | None,
    eps: float,
    activation: str | None = None,
    slope: float = SLOPE,
) -> tuple[Value, Value, Value, Value]:
    """``normext::group_norm_forward``, which ``normext::group_norm`` and ``instance_norm`` decompose into."""
    computed = _statistics_type(input)
    x = op.Reshape(_cast(input, computed), op.Constant(value_ints=[0, num_groups, -1]))
    last = op.Constant(value_ints=[2])
    mean = op.ReduceMean(x, last)
    centered = op.Sub(x, mean)
    variance = op.ReduceMean(op.Mul(centered, centered), last)
    rstd = op.Reciprocal(op.Sqrt(op.Add(variance, op.Constant(value=ir.tensor(eps, computed)))))
    output = op.Reshape(op.Mul(centered, rstd), op.Shape(input))
    channels = op.Constant(value_ints=[-1] + [1] * (len(input.shape) - 2))  # the shape of a parameter beside the input
    weight, bias = (None if p is None else op.Reshape(p, channels) for p in (weight, bias))
    output = _followed(_affine(output, weight, bias, 0.0, computed), None, activation, slope, computed)
    return _rounded(output, computed, input), *(op.Squeeze(statistic, last) for statistic in (mean, rstd, variance))


TRANSLATIONS = (
    layer_norm_forward,
    rms_norm_forward,
    add_norm_forward,
    adaptive_norm_forward,
    batch_norm_forward,
    group_norm_forward,
)
for translation in TRANSLATIONS:
    onnx_impl(getattr(torch.ops.normext, translation.__name__).default, no_compile=True)(translation)
