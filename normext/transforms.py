"""The norms under ``torch.func`` transforms and forward-mode AD, which refuse derivatives written in C++.

What is differentiated here is the bare normalization ``x̂ = (x - mean) * rstd``; weight and bias are applied by
torch's own operators, which every transform knows. Its Jacobian ``J`` is symmetric: the kernel of the backward is its
own transpose. ``J``'s derivative is ``torch.ops.normext.second_derivative``, differentiable to every order. Under vmap
the mapped dimension joins the rows (LayerNorm, RMSNorm) or the channels (BatchNorm). Where a forward-mode level is in
force, and where autograd functions are refused, all of it is composed of torch's operators.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._C._functorch import CInterpreter, peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from normext import _C, activations

ops = torch.ops.normext


def compiled() -> bool:
    """What :func:`normext._C.transformed` says, within what torch.compile traces.

    That takes whatever a call returns for something, not for None.
    """
    return isinstance(peek_interpreter_stack(), CInterpreter) or forward_ad._current_level >= 0


def _functionalizing() -> bool:
    """Whether torch.func.functionalize is among the transforms in force."""
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    return any(transform.key() == torch._C._functorch.TransformType.Functionalize for transform in transforms)


def _composing() -> bool:
    """Whether all must be composed of torch's operators, which is right for every nesting of transforms.

    torch runs the forward derivative of an autograd function with forward-mode AD off, and so cannot nest it; compilers
    and functionalize refuse autograd functions.
    """
    return forward_ad._current_level >= 0 or is_compiling() or _functionalizing()


Normalized = tuple[Tensor, ...]  # x̂, mean and rstd, and the variance of channels; only x̂ carries a derivative


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics over the last dimensions, ``normalized_shape``."""

    normalized_shape: tuple[int, ...]
    eps: float
    centered: bool = True  # LayerNorm's; RMSNorm takes zero for the mean

    def dim(self, input: Tensor) -> list[int]:
        """The dimensions that statistics are taken over."""
        return list(range(input.dim() - len(self.normalized_shape), input.dim()))

    def forward(self, input: Tensor) -> Normalized:
        """Normalizes ``[*, *normalized_shape]``."""
        if self.centered:
            return ops.layer_norm_forward(input, self.normalized_shape, None, None, self.eps)
        output, rstd = ops.rms_norm_forward(input, self.normalized_shape, None, self.eps)
        return output, torch.zeros_like(rstd), rstd

    def jacobian(self, v: Tensor, input: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        """``J(input) v``."""
        if self.centered:
            mask = [True, False, False]
            return ops.layer_norm_backward(v, input, self.normalized_shape, mean, rstd, None, self.eps, mask)[0]
        return ops.rms_norm_backward(v, input, self.normalized_shape, rstd, None, self.eps, [True, False])[0]

    def fold(self, tensor: Tensor) -> Tensor:
        """Makes a leading mapped dimension part of the data: here it is one more dimension of rows."""
        return tensor

    def unfold(self, tensor: Tensor, size: int) -> Tensor:
        """Undoes :meth:`fold`."""
        return tensor


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of each channel, over all other dimensions of ``[N, C, *]``."""

    eps: float
    centered: ClassVar[bool] = True

    def dim(self, input: Tensor) -> list[int]:
        """The dimensions that statistics are taken over."""
        return [0, *range(2, input.dim())]

    def forward(self, input: Tensor) -> Normalized:
        """Normalizes ``[N, C, *]``."""
        return ops.batch_norm_forward(input, None, None, None, None, True, self.eps)

    def jacobian(self, v: Tensor, input: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        """``J(input) v``."""
        return ops.batch_norm_backward(v, input, mean, rstd, None, True, self.eps, [True, False, False])[0]

    def fold(self, tensor: Tensor) -> Tensor:
        """Makes a leading mapped dimension part of the channels; statistics are ``[B, C]``, data ``[B, N, C, *]``."""
        return tensor.flatten(0, 1) if tensor.dim() == 2 else tensor.transpose(0, 1).flatten(1, 2)

    def unfold(self, tensor: Tensor, size: int) -> Tensor:
        """Undoes :meth:`fold`."""
        if tensor.dim() == 1:
            return tensor.unflatten(0, (size, -1))
        return tensor.unflatten(1, (size, -1)).transpose(0, 1)


Statistics = LayerStatistics | ChannelStatistics


def _fold(statistics: Statistics, size: int, in_dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Brings each tensor's mapped dimension to the front, expanding those without one, and folds it."""
    mapped = [
        tensor.movedim(dim, 0) if dim is not None else tensor.expand(size, *tensor.shape)
        for tensor, dim in zip(tensors, in_dims, strict=True)
    ]
    return [statistics.fold(tensor) for tensor in mapped]


class _Normalize(torch.autograd.Function):
    """x̂(x), and the statistics it took."""

    @staticmethod
    def forward(x: Tensor, statistics: Statistics) -> Normalized:
        return statistics.forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Statistics], output: Normalized) -> None:
        x, ctx.statistics = inputs
        _, mean, rstd, *_ = output
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, mean, rstd)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        x, mean, rstd = ctx.saved_tensors
        return _jacobian(grad_output, x, mean, rstd, ctx.statistics), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, statistics: Statistics) -> tuple[Any, Any]:
        (folded,) = _fold(statistics, info.batch_size, in_dims[:1], [x])
        outputs = _Normalize.apply(folded, statistics)
        return tuple(statistics.unfold(t, info.batch_size) for t in outputs), (0,) * len(outputs)


class _Jacobian(torch.autograd.Function):
    """J(x) v, which is its own transpose in v."""

    @staticmethod
    def forward(v: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, statistics: Statistics) -> Tensor:
        return statistics.jacobian(v, x, mean, rstd)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.statistics = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        v, x, mean, rstd = ctx.saved_tensors
        to_v = _jacobian(grad_output, x, mean, rstd, ctx.statistics)
        statistics = ctx.statistics
        to_x = ops.second_derivative(x, grad_output, v, statistics.dim(x), statistics.eps, statistics.centered)
        return to_v, to_x, None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, v: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, statistics: Statistics
    ) -> tuple[Tensor, int]:
        folded = _fold(statistics, info.batch_size, in_dims[:4], [v, x, mean, rstd])
        return statistics.unfold(_Jacobian.apply(*folded, statistics), info.batch_size), 0


def _compose(x: Tensor, statistics: Statistics) -> Normalized:
    """x̂, mean, rstd and variance in torch's operators; in float64, where no square of a float32 overflows."""
    dim, x = statistics.dim(x), x.double()
    mean = x.mean(dim, keepdim=True)
    if not statistics.centered:
        mean = torch.zeros_like(mean)
    var = (x - mean).square().mean(dim, keepdim=True)
    rstd = (var + statistics.eps).rsqrt()
    return (x - mean) * rstd, mean, rstd, var


def _normalize(x: Tensor, statistics: Statistics) -> Normalized:
    """x̂(x), in float64 where it is composed, and its statistics."""
    if not _composing():
        return _Normalize.apply(x, statistics)
    normalized, *taken = _compose(x, statistics)
    return normalized, *(statistic.detach().flatten().to(x.dtype) for statistic in taken)


def _jacobian(v: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, statistics: Statistics) -> Tensor:
    """J(x) v; transforms may be in force that were not when x̂(x) was computed."""
    if not _composing():
        return _Jacobian.apply(v, x, mean, rstd, statistics)
    (normalized, _, rstd, _), dim = _compose(x, statistics), statistics.dim(x)
    shared = normalized * (v * normalized).mean(dim, keepdim=True)
    if statistics.centered:
        shared = shared + v.mean(dim, keepdim=True)
    return (rstd * (v - shared)).to(x.dtype)


def _layers(tensor: Tensor | None) -> list[Tensor | None]:
    """The tensor, and what transforms have wrapped in it, outermost first."""
    layers = [tensor]
    while tensor is not None and torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
        layers.append(tensor)
    return layers


def _checks() -> Any:
    """Where the functions are that check arguments: compilers can trace operators only."""
    return ops if is_compiling() else _C


def _wide(tensor: Tensor) -> Tensor:
    """Half types are computed in float32 throughout, and rounded once, at the end."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _affine(normalized: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    if weight is not None:
        normalized = normalized * weight
    if bias is not None:
        normalized = normalized + bias
    return normalized.to(dtype)


def _offset(weight: Tensor | None, weight_offset: float) -> Tensor | None:
    return _wide(weight) + weight_offset if weight is not None and weight_offset != 0 else weight


def _eps(eps: float | None, input: Tensor) -> float:
    """Without one it is the least step of the dtype that is computed in."""
    return torch.finfo(_wide(input).dtype).eps if eps is None else eps


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    weight_offset: float,
) -> Tensor:
    """:func:`normext.layer_norm`, transformable."""
    _checks().check_layer_norm(input, normalized_shape, weight, bias, eps, weight_offset=weight_offset)
    statistics = LayerStatistics(tuple(normalized_shape), eps)
    normalized = _normalize(_wide(input), statistics)[0]
    return _affine(normalized, _offset(weight, weight_offset), bias, input.dtype)


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None, weight_offset: float
) -> Tensor:
    """:func:`normext.rms_norm`, transformable."""
    _checks().check_rms_norm(input, normalized_shape, weight, eps, weight_offset=weight_offset)
    statistics = LayerStatistics(tuple(normalized_shape), _eps(eps, input), False)
    normalized = _normalize(_wide(input), statistics)[0]
    return _affine(normalized, _offset(weight, weight_offset), None, input.dtype)


def _added(input: Tensor, residual: Tensor) -> Tensor:
    """The sum, rounded to the residual's dtype."""
    return (_wide(input) + _wide(residual)).to(residual.dtype)


def add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    weight_offset: float,
) -> tuple[Tensor, Tensor]:
    """:func:`normext.add_layer_norm`, transformable."""
    offset = {"weight_offset": weight_offset}
    _checks().check_add_layer_norm(input, residual, normalized_shape, weight, bias, eps, **offset)
    total = _added(input, residual)
    normalized = _normalize(_wide(total), LayerStatistics(tuple(normalized_shape), eps))[0]
    return _affine(normalized, _offset(weight, weight_offset), bias, input.dtype), total


def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    weight_offset: float,
) -> tuple[Tensor, Tensor]:
    """:func:`normext.add_rms_norm`, transformable."""
    _checks().check_add_rms_norm(input, residual, normalized_shape, weight, eps, weight_offset=weight_offset)
    total = _added(input, residual)
    statistics = LayerStatistics(tuple(normalized_shape), _eps(eps, input), False)
    normalized = _normalize(_wide(total), statistics)[0]
    return _affine(normalized, _offset(weight, weight_offset), None, input.dtype), total


def _aligned(parameter: Tensor | None, input: Tensor) -> Tensor | None:
    """With as many dimensions as the input: ``[B, D]`` is ``[B, 1, D]`` for an input of ``[B, T, D]``."""
    if parameter is None or parameter.dim() == input.dim():
        return parameter
    return parameter.view(*parameter.shape[:-1], *[1] * (input.dim() - parameter.dim()), parameter.shape[-1])


def adaptive_layer_norm(input: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """:func:`normext.adaptive_layer_norm`, transformable."""
    _checks().check_adaptive_layer_norm(input, scale, shift, eps)
    normalized = _normalize(_wide(input), LayerStatistics(tuple(input.shape[-1:]), eps))[0]
    return _affine(normalized, _offset(_aligned(scale, input), 1.0), _aligned(shift, input), input.dtype)


def adaptive_rms_norm(input: Tensor, scale: Tensor, shift: Tensor | None, eps: float | None) -> Tensor:
    """:func:`normext.adaptive_rms_norm`, transformable."""
    _checks().check_adaptive_rms_norm(input, scale, shift, eps)
    statistics = LayerStatistics(tuple(input.shape[-1:]), _eps(eps, input), False)
    normalized = _normalize(_wide(input), statistics)[0]
    return _affine(normalized, _offset(_aligned(scale, input), 1.0), _aligned(shift, input), input.dtype)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    slope: float = activations.SLOPE,
) -> Tensor:
    """:func:`normext.batch_norm`, transformable. Running statistics under vmap must be mapped too, as in torch."""
    fused: dict[str, Any] = {"residual": residual, "activation": activation, "slope": slope}
    _checks().check_batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps, **fused)
    if not is_compiling():
        for layer in _layers(running_mean):
            _C.check_not_differentiated(layer, None, training)
        for layer in _layers(running_var):
            _C.check_not_differentiated(None, layer, training)
    channel_shape = [1, -1] + [1] * (input.dim() - 2) if input.dim() > 1 else [-1]
    x = _wide(input)
    if training:
        normalized, mean, _, var = _normalize(x, ChannelStatistics(eps))
        if running_mean is not None and running_var is not None and x.numel() > 0:
            ops.batch_norm_update_stats(running_mean, running_var, mean, var, x.numel() // x.shape[1], momentum)
    else:
        assert running_mean is not None and running_var is not None, "they have been checked"
        rstd = torch.rsqrt(_wide(running_var) + eps)
        normalized = (x - running_mean.view(channel_shape)) * rstd.view(channel_shape)
    weight, bias = (None if p is None else p.view(channel_shape) for p in (weight, bias))
    if residual is None and activation is None:
        return _affine(normalized, weight, bias, input.dtype)
    z = _affine(normalized, weight, bias, x.dtype)
    return activations.apply(z if residual is None else z + residual, activation, slope).to(input.dtype)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    activation: str | None,
    slope: float,
) -> Tensor:
    """:func:`normext.group_norm`, transformable: x̂ is that of rows which are a sample's groups."""
    _checks().check_group_norm(input, num_groups, weight, bias, eps, activation=activation, slope=slope)
    return _group_norm(input, num_groups, weight, bias, eps, activation, slope)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    slope: float,
) -> Tensor:
    if input.numel() == 0:
        normalized = input
    else:
        rows = _wide(input).unflatten(1, (num_groups, -1))
        normalized = _normalize(rows, LayerStatistics(tuple(rows.shape[2:]), eps))[0].flatten(1, 2)
    channel_shape = [1, -1] + [1] * (input.dim() - 2)
    weight, bias = (None if p is None else p.reshape(channel_shape) for p in (weight, bias))
    dtype = input.dtype if activation is None else _wide(input).dtype
    return activations.apply(_affine(normalized, weight, bias, dtype), activation, slope).to(input.dtype)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *,
    activation: str | None,
    slope: float,
) -> Tensor:
    """:func:`normext.instance_norm`, transformable. Running statistics under vmap must be mapped too, as in torch."""
    _checks().check_instance_norm(
        input,
        running_mean,
        running_var,
        weight,
        bias,
        use_input_stats,
        momentum,
        eps,
        activation=activation,
        slope=slope,
    )
    if not use_input_stats:
        given = (running_mean, running_var, weight, bias)
        return batch_norm(input, *given, False, momentum, eps, activation=activation, slope=slope)
    if running_mean is not None and running_var is not None and input.numel() > 0:
        var, mean = torch.var_mean(input.detach().double(), list(range(2, input.dim())), correction=0)
        dtype = _wide(input).dtype
        statistics = (mean.mean(0).to(dtype), var.mean(0).to(dtype))
        ops.batch_norm_update_stats(running_mean, running_var, *statistics, input[0, 0].numel(), momentum)
    return _group_norm(input, input.shape[1], weight, bias, eps, activation, slope)
