"""BatchNorm over a batch that is spread over the processes of a group.

Each process finds the moments of its part, all gather them, merge them in the order of ranks, and map their parts by
the whole's; likewise backward, with sums. What travels is ``2 C + 1`` float64 numbers of each process forward, its
count among them, and ``2 C`` backward. ``notes/sync_batch_norm.md`` has what this makes of exactness.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normext import _C, activations, transforms

ops = torch.ops.normext
Group = tuple[str, int]  # the name that collectives know it by, and how many processes it has


def group_of(process_group: Any) -> Group | None:
    """The group, by default of all processes; None where there is nobody to synchronize with."""
    if not dist.is_available() or not dist.is_initialized():
        return None
    group: Any = process_group or dist.group.WORLD
    size = dist.get_world_size(group)
    if size <= 1:
        return None
    if transforms.compiled() if torch.compiler.is_compiling() else _C.transformed():
        raise NotImplementedError(
            "SyncBatchNorm: torch.func transforms and forward-mode AD cannot follow what other processes compute; "
            "expected a call outside of them, or a group of one process"
        )
    return group.group_name, size


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float | Tensor,
    eps: float,
    group: Group,
    *,
    residual: Tensor | None,
    activation: activations.Activation,
) -> Tensor:
    """:func:`normext.batch_norm` in training, by the statistics of all processes of the group."""
    if hasattr(input, "device_mesh"):
        raise NotImplementedError(
            "SyncBatchNorm: expected a local tensor, this process's part of the batch, but got a DTensor, whose "
            "batch is whole already; BatchNorm takes it"
        )
    if eps <= 0:
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
    output, moments = _SyncBatchNorm.apply(input, weight, bias, residual, eps, activations.parts(activation), group)
    if running_mean is not None and running_var is not None:
        _track(running_mean, running_var, moments, momentum)
    return output


def _track(running_mean: Tensor, running_var: Tensor, moments: Tensor, momentum: float | Tensor) -> None:
    """Adds the batch to the running statistics, unless it has a single value, or none, which has no variance."""
    mean, squares, count = moments.split([running_mean.numel(), running_mean.numel(), 1])
    for running, batch in ((running_mean, mean), (running_var, squares / (count - 1))):
        old = running.detach().double()
        running.copy_(torch.where(count > 1, old + momentum * (batch - old), old))


def _gathered(part: Tensor, group: Group) -> Tensor:
    """Every process's part, in the order of ranks: ``[size, *]``."""
    name, size = group
    collectives = torch.ops._c10d_functional
    return collectives.wait_tensor(collectives.all_gather_into_tensor(part, size, name)).view(size, *part.shape)


class _SyncBatchNorm(torch.autograd.Function):
    """The norm with what follows it, and the moments of the whole batch."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        eps: float,
        activation: tuple[str | None, float],
        group: Group,
    ) -> tuple[Tensor, Tensor]:
        moments = ops.batch_norm_merge(_gathered(ops.batch_norm_moments(input), group))
        output, mean, rstd = ops.batch_norm_map(input, moments, weight, bias, eps, residual, *activation)
        # What no gradient depends on is not saved, and may be changed before backward.
        for_activation = (None, None) if activation[0] is None else (bias, residual)
        ctx.save_for_backward(input, weight, *for_activation, moments, mean, rstd)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.mark_non_differentiable(moments)
        ctx.eps, ctx.activation, ctx.group = eps, activation, group
        return output, moments

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, residual, moments, mean, rstd = ctx.saved_tensors
        to_input, to_weight, to_bias, to_residual, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            grad_input, grad_weight, grad_bias, g = _differentiable_backward(
                grad_output, input, weight, bias, residual, moments[-1], ctx.eps, ctx.activation, ctx.group
            )
        else:
            g = grad_output
            if ctx.activation[0] is not None:
                parameters, only_residual = (weight, bias, residual), (False, False, False, True)
                *_, g = ops.batch_norm_activation_backward(
                    grad_output, input, mean, rstd, *parameters, False, ctx.eps, only_residual, *ctx.activation
                )
            sums = ops.batch_norm_gradient_sums(g, input, moments, mean, rstd)
            grad_bias, grad_weight = sums.view(2, -1)
            if to_input:
                total = _gathered(sums, ctx.group).sum(0)
                grad_input = ops.batch_norm_gradient_map(g, input, moments, mean, rstd, weight, total)
        return (
            grad_input if to_input else None,
            grad_weight.to(weight.dtype) if to_weight else None,
            grad_bias.to(ctx.bias_dtype) if to_bias else None,
            g if to_residual else None,
            None,
            None,
            None,
        )


class _Total(torch.autograd.Function):
    """The sum over all processes, whose derivative is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _gathered(part.contiguous(), group).sum(0)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return _Total.apply(grad_output, ctx.group), None


def _differentiable_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    count: Tensor,
    eps: float,
    activation: tuple[str | None, float],
    group: Group,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients, in float64 and in operations that have derivatives of every order."""
    x, dy = input.double(), grad_output.double()
    others = [0, *range(2, x.dim())]

    def mean(v: Tensor) -> Tensor:
        return _Total.apply(v.sum(others, keepdim=True), group) / count

    scale, shift = (
        torch.full((), neutral, dtype=x.dtype) if p is None else p.double().view(-1, *[1] * (x.dim() - 2))
        for p, neutral in ((weight, 1.0), (bias, 0.0))
    )
    difference = x - mean(x)
    rstd = (mean(difference.square()) + eps).rsqrt()
    normalized = difference * rstd
    z = normalized * scale + shift
    dz = activations.gradient(dy, z if residual is None else z + residual, *activation)
    h = dz * scale
    grad_input = rstd * (h - mean(h) - normalized * mean(h * normalized))
    return grad_input.to(input.dtype), (dz * normalized).sum(others), dz.sum(others), dz.to(grad_output.dtype)
