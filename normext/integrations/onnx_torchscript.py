"""Symbolic functions for ``torch.onnx.export(dynamo=False)``: each norm is exported as its namesake in torch is.

Half types are computed in float32: all but LayerNorm by casts, it because ONNX defines it so.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.onnx import JitScalarType, register_custom_op_symbolic
from torch.onnx._internal.torchscript_exporter.registration import registry
from torch.onnx.symbolic_helper import _get_const, _is_none, _unsqueeze_helper, parse_args

Graph = Any  # torch.onnx's GraphContext
Value = Any  # torch._C.Value
OLDEST_OPSET = 9  # of those that torch exports to


def _torch(g: Graph, name: str) -> Callable[..., Value]:
    """Torch's own translation of ``aten::<name>``, for the opset that is exported to."""
    group: Any = registry.get_function_group(f"aten::{name}")
    return group.get(g.opset)


def _cast(g: Graph, value: Value, dtype: JitScalarType) -> Value:
    if _is_none(value) or JitScalarType.from_value(value) == dtype:
        return value
    return g.op("Cast", value, to_i=dtype.onnx_type())


def _statistics_type(input: Value) -> JitScalarType:
    """Normext keeps statistics in float64 for float64 inputs, in float32 for all others."""
    own = JitScalarType.from_value(input)
    return own if own == JitScalarType.DOUBLE else JitScalarType.FLOAT


def _mean(g: Graph, x: Value, dims: list[int], keepdims: bool) -> Value:
    if g.opset < 18:
        return g.op("ReduceMean", x, axes_i=dims, keepdims_i=int(keepdims))
    return g.op("ReduceMean", x, g.op("Constant", value_t=torch.tensor(dims)), keepdims_i=int(keepdims))


def _mean_and_variance(g: Graph, x: Value, dims: list[int], keepdims: bool) -> tuple[Value, Value]:
    centered = g.op("Sub", x, _mean(g, x, dims, keepdims=True))
    return _mean(g, x, dims, keepdims), _mean(g, g.op("Mul", centered, centered), dims, keepdims)


def _rstd(g: Graph, variance: Value, eps: float) -> Value:
    eps_like_it = _cast(g, g.op("Constant", value_t=torch.tensor(eps)), JitScalarType.from_value(variance))
    return g.op("Reciprocal", g.op("Sqrt", g.op("Add", variance, eps_like_it)))


def _offset(g: Graph, weight: Value, weight_offset: float, computed: JitScalarType) -> Value:
    """The weight with its offset, which is added in the dtype that is computed in."""
    if _is_none(weight) or weight_offset == 0:
        return weight
    offset = g.op("Constant", value_t=torch.tensor(weight_offset, dtype=computed.dtype()))
    return g.op("Add", _cast(g, weight, computed), offset)


def _eps(eps: Value, input: Value) -> float:
    """Without one it is the least step of the dtype that is computed in."""
    return torch.finfo(_statistics_type(input).dtype()).eps if _is_none(eps) else _get_const(eps, "f", "eps")


@parse_args("v", "is", "v", "v", "f", "f")
def layer_norm(
    g: Graph,
    input: Value,
    normalized_shape: list[int],
    weight: Value,
    bias: Value,
    eps: float,
    weight_offset: float,
) -> Value:
    """``normext::layer_norm``."""
    own = JitScalarType.from_value(input)
    parameters = (JitScalarType.from_value(p) for p in (weight, bias) if not _is_none(p))
    computed = next(parameters, own) if weight_offset == 0 else _statistics_type(input)
    x, bias = _cast(g, input, computed), _cast(g, bias, computed)
    weight = _offset(g, weight, weight_offset, computed)
    return _cast(g, _torch(g, "layer_norm")(g, x, normalized_shape, weight, bias, eps, False), own)


@parse_args("v", "is", "v", "v", "f", "f")
def layer_norm_forward(
    g: Graph,
    input: Value,
    normalized_shape: list[int],
    weight: Value,
    bias: Value,
    eps: float,
    weight_offset: float,
) -> tuple[Value, Value, Value]:
    """``normext::layer_norm_forward``."""
    x, dims = _cast(g, input, _statistics_type(input)), list(range(-len(normalized_shape), 0))
    mean, variance = _mean_and_variance(g, x, dims, keepdims=True)
    output = layer_norm(g, input, normalized_shape, weight, bias, eps, weight_offset)
    return output, mean, _rstd(g, variance, eps)


@parse_args("v", "is", "v", "f", "f")
def rms_norm_forward(
    g: Graph, input: Value, normalized_shape: list[int], weight: Value, eps: float, weight_offset: float
) -> tuple[Value, Value]:
    """``normext::rms_norm_forward``."""
    own, computed = JitScalarType.from_value(input), _statistics_type(input)
    x = _cast(g, input, computed)
    rstd = _rstd(g, _mean(g, g.op("Mul", x, x), list(range(-len(normalized_shape), 0)), keepdims=True), eps)
    output = g.op("Mul", x, rstd)
    if not _is_none(weight):
        output = g.op("Mul", output, _cast(g, _offset(g, weight, weight_offset, computed), computed))
    return _cast(g, output, own), rstd


@parse_args("v", "is", "v", "v", "f")
def rms_norm(
    g: Graph, input: Value, normalized_shape: list[int], weight: Value, eps: Value, weight_offset: float
) -> Value:
    """``normext::rms_norm``."""
    return rms_norm_forward(g, input, normalized_shape, weight, _eps(eps, input), weight_offset)[0]


def _normalized(g: Graph, x: Value, dims: int, eps: float, centered: bool) -> Value:
    """x̂ over the last dimensions."""
    over = list(range(-dims, 0))
    if centered:
        x = g.op("Sub", x, _mean(g, x, over, keepdims=True))
    return g.op("Mul", x, _rstd(g, _mean(g, g.op("Mul", x, x), over, keepdims=True), eps))


def _affine(g: Graph, output: Value, weight: Value, bias: Value, offset: float, computed: JitScalarType) -> Value:
    if not _is_none(weight):
        output = g.op("Mul", output, _cast(g, _offset(g, weight, offset, computed), computed))
    return output if _is_none(bias) else g.op("Add", output, _cast(g, bias, computed))


def _add_norm(
    g: Graph,
    input: Value,
    residual: Value,
    normalized_shape: list[int],
    weight: Value,
    bias: Value,
    eps: float,
    weight_offset: float,
    centered: bool,
) -> tuple[Value, Value]:
    own, computed = JitScalarType.from_value(input), _statistics_type(input)
    total = g.op("Add", _cast(g, input, computed), _cast(g, residual, computed))
    total = _cast(g, total, JitScalarType.from_value(residual))
    output = _normalized(g, _cast(g, total, computed), len(normalized_shape), eps, centered)
    return _cast(g, _affine(g, output, weight, bias, weight_offset, computed), own), total


@parse_args("v", "v", "is", "v", "v", "f", "f")
def add_layer_norm(
    g: Graph,
    input: Value,
    residual: Value,
    normalized_shape: list[int],
    weight: Value,
    bias: Value,
    eps: float,
    weight_offset: float,
) -> tuple[Value, Value]:
    """``normext::add_layer_norm``."""
    return _add_norm(g, input, residual, normalized_shape, weight, bias, eps, weight_offset, centered=True)


@parse_args("v", "v", "is", "v", "v", "f")
def add_rms_norm(
    g: Graph,
    input: Value,
    residual: Value,
    normalized_shape: list[int],
    weight: Value,
    eps: Value,
    weight_offset: float,
) -> tuple[Value, Value]:
    """``normext::add_rms_norm``."""
    given = _eps(eps, input)
    return _add_norm(g, input, residual, normalized_shape, weight, None, given, weight_offset, centered=False)


def _adaptive_norm(g: Graph, input: Value, scale: Value, shift: Value, eps: float, centered: bool) -> Value:
    own, computed = JitScalarType.from_value(input), _statistics_type(input)

    def aligned(parameter: Value) -> Value:
        missing = 0 if _is_none(parameter) else input.type().dim() - parameter.type().dim()
        last = input.type().dim() - 1
        return _unsqueeze_helper(g, parameter, list(range(last - missing, last))) if missing else parameter

    output = _normalized(g, _cast(g, input, computed), 1, eps, centered)
    return _cast(g, _affine(g, output, aligned(scale), aligned(shift), 1.0, computed), own)


@parse_args("v", "v", "v", "f")
def adaptive_layer_norm(g: Graph, input: Value, scale: Value, shift: Value, eps: float) -> Value:
    """``normext::adaptive_layer_norm``."""
    return _adaptive_norm(g, input, scale, shift, eps, centered=True)


@parse_args("v", "v", "v", "v")
def adaptive_rms_norm(g: Graph, input: Value, scale: Value, shift: Value, eps: Value) -> Value:
    """``normext::adaptive_rms_norm``."""
    return _adaptive_norm(g, input, scale, shift, _eps(eps, input), centered=False)


def _followed(
    g: Graph, z: Value, residual: Value, activation: str | None, slope: float, computed: JitScalarType
) -> Value:
    if not _is_none(residual):
        z = g.op("Add", z, residual)
    match activation:
        case None:
            return z
        case "relu":
            return g.op("Relu", z)
        case "leaky_relu":  # onnxruntime has no LeakyRelu of float64
            zero, factor = (
                g.op("Constant", value_t=torch.tensor(value, dtype=computed.dtype())) for value in (0.0, slope)
            )
            return g.op("Where", g.op("Less", z, zero), g.op("Mul", z, factor), z)
        case "silu":
            return g.op("Mul", z, g.op("Sigmoid", z))
    raise ValueError(f"unknown activation: {activation}")


@parse_args("v", "v", "v", "v", "v", "b", "f", "f", "v", "s", "f")
def batch_norm(
    g: Graph,
    input: Value,
    running_mean: Value,
    running_var: Value,
    weight: Value,
    bias: Value,
    training: bool,
    momentum: float,
    eps: float,
    residual: Value,
    activation: str | None,
    slope: float,
) -> Value:
    """``normext::batch_norm``."""
    fused = (residual, activation, slope)
    if _is_none(running_mean):  # in training, then, where torch's translation would ask for the size of the batch
        return batch_norm_forward(g, input, running_mean, running_var, weight, bias, training, eps, *fused)[0]
    own, computed = JitScalarType.from_value(input), _statistics_type(input)
    tensors = (_cast(g, t, computed) for t in (input, weight, bias, running_mean, running_var))
    output = _torch(g, "batch_norm")(g, *tensors, training, momentum, eps, False)
    return _cast(g, _followed(g, output, _cast(g, residual, computed), activation, slope, computed), own)


@parse_args("v", "v", "v", "v", "v", "b", "f", "v", "s", "f")
def batch_norm_forward(
    g: Graph,
    input: Value,
    running_mean: Value,
    running_var: Value,
    weight: Value,
    bias: Value,
    training: bool,
    eps: float,
    residual: Value,
    activation: str | None,
    slope: float,
) -> tuple[Value, Value, Value, Value]:
    """``normext::batch_norm_forward``: given the batch's statistics for running ones, ONNX's inference is training."""
    computed = _statistics_type(input)
    if training:
        x, dims = _cast(g, input, computed), [0, *range(2, input.type().dim())]
        mean, variance = _mean_and_variance(g, x, dims, keepdims=False)
    else:
        mean, variance = (_cast(g, running, computed) for running in (running_mean, running_var))
    fused = (residual, activation, slope)
    output = batch_norm(g, input, mean, variance, weight, bias, False, 0.0, eps, *fused)
    var = variance if training else g.op("Constant", value_t=torch.empty(0, dtype=computed.dtype()))
    return output, mean, _rstd(g, variance, eps), var


@parse_args("v", "i", "v", "v", "f", "s", "f")
def group_norm_forward(
    g: Graph,
    input: Value,
    num_groups: int,
    weight: Value,
    bias: Value,
    eps: float,
    activation: str | None,
    slope: float,
) -> tuple[Value, Value, Value, Value]:
    """``normext::group_norm_forward``."""
    own, computed = JitScalarType.from_value(input), _statistics_type(input)
    x = g.op("Reshape", _cast(g, input, computed), g.op("Constant", value_t=torch.tensor([0, num_groups, -1])))
    centered = g.op("Sub", x, _mean(g, x, [2], keepdims=True))
    variance = _mean(g, g.op("Mul", centered, centered), [2], keepdims=True)
    output = g.op("Reshape", g.op("Mul", centered, _rstd(g, variance, eps)), g.op("Shape", input))
    dims = list(range(1, input.type().dim() - 1))
    weight, bias = (p if _is_none(p) else _unsqueeze_helper(g, p, dims) for p in (weight, bias))
    output = _followed(g, _affine(g, output, weight, bias, 0.0, computed), None, activation, slope, computed)
    mean, var = _mean_and_variance(g, x, [2], keepdims=False)
    return _cast(g, output, own), mean, _rstd(g, var, eps), var


@parse_args("v", "i", "v", "v", "f", "s", "f")
def group_norm(
    g: Graph,
    input: Value,
    num_groups: int,
    weight: Value,
    bias: Value,
    eps: float,
    activation: str | None,
    slope: float,
) -> Value:
    """``normext::group_norm``."""
    return group_norm_forward(g, input, num_groups, weight, bias, eps, activation, slope)[0]


@parse_args("v", "v", "v", "v", "v", "b", "f", "f", "s", "f")
def instance_norm(
    g: Graph,
    input: Value,
    running_mean: Value,
    running_var: Value,
    weight: Value,
    bias: Value,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    activation: str | None,
    slope: float,
) -> Value:
    """``normext::instance_norm``."""
    if use_input_stats:
        channels = 0  # which is as many as there are, to Reshape
        return group_norm(g, input, channels, weight, bias, eps, activation, slope)
    given = (running_mean, running_var, weight, bias)
    return batch_norm(g, input, *given, False, momentum, eps, None, activation, slope)


SYMBOLICS = (
    layer_norm,
    layer_norm_forward,
    rms_norm,
    rms_norm_forward,
    add_layer_norm,
    add_rms_norm,
    adaptive_layer_norm,
    adaptive_rms_norm,
    batch_norm,
    batch_norm_forward,
    group_norm,
    group_norm_forward,
    instance_norm,
)
for symbolic in SYMBOLICS:
    register_custom_op_symbolic(f"normext::{symbolic.__name__}", symbolic, OLDEST_OPSET)
