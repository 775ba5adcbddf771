"""The norms under ``torch.func`` transforms and forward-mode AD, which refuse derivatives written in C++.

What is differentiated here is the bare normalization ``x̂ = (x - mean) * rstd``; weight and bias are applied by
torch's own operators, which every transform knows. Its Jacobian ``J`` is symmetric, so one kernel, the backward, serves
as reverse and as forward derivative; ``J``'s own derivative is ``torch.ops.normext.second_derivative``, differentiable
to every order. Under vmap the mapped dimension joins the rows (LayerNorm) or the channels (BatchNorm).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_dynamic_layer_stack_depth
from torch.autograd import forward_ad
from torch.compiler import is_compiling

ops = torch.ops.normext


def active() -> bool:
    """Whether a torch.func transform or a forward-mode AD level is in force."""
    return get_dynamic_layer_stack_depth() > 0 or forward_ad._current_level >= 0


def _functionalizing() -> bool:
    """Whether torch.func.functionalize is among the transforms in force."""
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    return any(transform.key() == torch._C._functorch.TransformType.Functionalize for transform in transforms)


Normalized = tuple[Tensor, ...]  # x̂, mean and rstd, and the variance of channels; only x̂ carries a derivative


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics over the last dimensions, ``normalized_shape``."""

    normalized_shape: tuple[int, ...]
    eps: float

    def dim(self, input: Tensor) -> list[int]:
        """The dimensions that statistics are taken over."""
        return list(range(input.dim() - len(self.normalized_shape), input.dim()))

    def forward(self, input: Tensor) -> Normalized:
        """Normalizes ``[*, *normalized_shape]``."""
        return ops.layer_norm_forward(input, self.normalized_shape, None, None, self.eps)

    def jacobian(self, v: Tensor, input: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        """``J(input) v``."""
        return ops.layer_norm_backward(
            v, input, self.normalized_shape, mean, rstd, None, self.eps, [True, False, False]
        )[0]

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
        ctx.statistics_tangents = [None] * len(output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, mean, rstd)
        ctx.save_for_forward(x, mean, rstd)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        return _Jacobian.apply(grad_output, *ctx.saved_tensors, ctx.statistics), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> tuple[Tensor | None, ...]:
        return _Jacobian.apply(tangent, *ctx.saved_tensors, ctx.statistics), *ctx.statistics_tangents

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
        ctx.save_for_forward(*tensors)

    @staticmethod
    def _second(ctx: Any, a: Tensor) -> Tensor:
        v, x, _, _ = ctx.saved_tensors
        return ops.second_derivative(x, a, v, ctx.statistics.dim(x), ctx.statistics.eps)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        _, x, mean, rstd = ctx.saved_tensors
        to_v = _Jacobian.apply(grad_output, x, mean, rstd, ctx.statistics)
        return to_v, _Jacobian._second(ctx, grad_output), None, None, None

    @staticmethod
    def jvp(ctx: Any, v_tangent: Tensor | None, x_tangent: Tensor | None, *_: Any) -> Tensor:
        _, x, mean, rstd = ctx.saved_tensors
        tangents = []
        if v_tangent is not None:
            tangents.append(_Jacobian.apply(v_tangent, x, mean, rstd, ctx.statistics))
        if x_tangent is not None:
            tangents.append(_Jacobian._second(ctx, x_tangent))
        return sum(tangents[1:], tangents[0])

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, v: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, statistics: Statistics
    ) -> tuple[Tensor, int]:
        folded = _fold(statistics, info.batch_size, in_dims[:4], [v, x, mean, rstd])
        return statistics.unfold(_Jacobian.apply(*folded, statistics), info.batch_size), 0


def _normalize(x: Tensor, statistics: Statistics) -> Normalized:
    """x̂(x) and its statistics; in torch's operators where compilers and functionalize refuse autograd functions."""
    if not (is_compiling() or _functionalizing()):
        return _Normalize.apply(x, statistics)
    dim = statistics.dim(x)
    mean = x.mean(dim, keepdim=True)
    var = (x - mean).square().mean(dim, keepdim=True)
    rstd = (var + statistics.eps).rsqrt()
    return (x - mean) * rstd, *(statistic.detach().flatten() for statistic in (mean, rstd, var))


def _wide(tensor: Tensor) -> Tensor:
    """Half types are computed in float32 throughout, and rounded once, at the end."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _affine(normalized: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    if weight is not None:
        normalized = normalized * weight
    if bias is not None:
        normalized = normalized + bias
    return normalized.to(dtype)


def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """:func:`normext.layer_norm`, transformable."""
    statistics = LayerStatistics(tuple(normalized_shape), eps)
    normalized = _normalize(_wide(input), statistics)[0]
    return _affine(normalized, weight, bias, input.dtype)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """:func:`normext.batch_norm`, transformable. Running statistics under vmap must be mapped too, as in torch."""
    channel_shape = [1, -1] + [1] * (input.dim() - 2)
    x = _wide(input)
    if not training:
        if running_mean is None or running_var is None:
            raise RuntimeError("running_mean and running_var must be defined in evaluation mode")
        rstd = torch.rsqrt(_wide(running_var) + eps)
        normalized = (x - running_mean.view(channel_shape)) * rstd.view(channel_shape)
    else:
        normalized, mean, _, var = _normalize(x, ChannelStatistics(eps))
        if running_mean is not None and running_var is not None:
            ops.batch_norm_update_stats(running_mean, running_var, mean, var, x.numel() // x.shape[1], momentum)
    weight, bias = (None if p is None else p.view(channel_shape) for p in (weight, bias))
    return _affine(normalized, weight, bias, input.dtype)
