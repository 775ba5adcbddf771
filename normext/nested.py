"""Row norms of nested tensors, strided and jagged; channel norms of them are torch's, which is an error."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nested._internal.nested_tensor import NestedTensor, nested_view_from_values_offsets_lengths
from torch.nn import functional as torch_functional

ops = torch.ops.normext


def _like(values: Tensor, input: NestedTensor) -> Tensor:
    """A jagged tensor of these values, which has input's structure."""
    return nested_view_from_values_offsets_lengths(
        values, input.offsets(), input.lengths(), input._ragged_idx, input._maybe_min_seqlen, input._maybe_max_seqlen
    )


def _row_norm(name: str, input: Tensor, normalized_shape: Sequence[int], *arguments: Any, **options: Any) -> Tensor:
    """The norm of a nested tensor, which has its layout and its structure."""
    norm: Callable[..., Tensor] = getattr(ops, name)
    if not isinstance(input, NestedTensor):  # the strided layout
        rows = [norm(row, normalized_shape, *arguments, **options) for row in input.unbind()]
        return torch.nested.as_nested_tensor(rows)
    if input.dim() - len(normalized_shape) <= input._ragged_idx:  # over the ragged dimension, or the batch: an error
        return getattr(torch_functional, name)(input, normalized_shape, *arguments)
    return _like(norm(input.values(), normalized_shape, *arguments, **options), input)


def _add_norm(
    name: str, input: Tensor, residual: Tensor, normalized_shape: Sequence[int], *arguments: Any, **options: Any
) -> tuple[Tensor, Tensor]:
    """The same with a residual of the same layout and structure."""
    norm: Callable[..., tuple[Tensor, Tensor]] = getattr(ops, name)
    if input.is_nested and residual.is_nested and input.layout == residual.layout:
        if not isinstance(input, NestedTensor):
            pairs = zip(input.unbind(), residual.unbind(), strict=True)
            both = [norm(*pair, normalized_shape, *arguments, **options) for pair in pairs]
            outputs, sums = (torch.nested.as_nested_tensor(list(rows)) for rows in zip(*both, strict=True))
            return outputs, sums
        if input.shape == residual.shape and input.dim() - len(normalized_shape) > input._ragged_idx:
            output, total = norm(input.values(), residual.values(), normalized_shape, *arguments, **options)
            return _like(output, input), _like(total, input)
    given = ", ".join(
        f"{what} of {tensor.dim()} dimensions, {'nested, ' if tensor.is_nested else ''}{tensor.layout}"
        for what, tensor in (("input", input), ("residual", residual))
    )
    raise RuntimeError(
        f"{name}: expected input and residual of one layout and structure, normalized over dimensions after the ragged "
        f"one, but got {given}, and normalized_shape={list(normalized_shape)}"
    )


def _adaptive_norm(
    name: str, input: Tensor, scale: Tensor, shift: Tensor | None = None, *arguments: Any, **options: Any
) -> Tensor:
    """With scale and shift of ``[D]``, ``[B, D]`` or ``[B, 1, D]``; or nested as the input is, for each token."""
    norm: Callable[..., Tensor] = getattr(ops, name)
    given = [scale] if shift is None else [scale, shift]
    absent = [None] * (2 - len(given))
    if all(_is_along(p, input) for p in given):
        if not isinstance(input, NestedTensor):
            rows = input.unbind()
            lines = zip(*([p] * len(rows) if p.dim() == 1 else p.unbind() for p in given), strict=True)
            both = zip(rows, lines, strict=True)
            return torch.nested.as_nested_tensor([norm(x, *line, *absent, *arguments, **options) for x, line in both])
        if input._ragged_idx == 1 and input.lengths() is None:
            tokens = [_lines(p, input) for p in given]
            return _like(norm(input.values(), *tokens, *absent, *arguments, **options), input)
    shapes = ", ".join(f"{p.dim()} dimensions, nested" if p.is_nested else str(list(p.shape)) for p in given)
    raise RuntimeError(
        f"{name}: expected scale and shift of [D], or of [B, D] for a nested input of B samples without holes, or of "
        f"its layout and structure, but got {shapes}"
    )


def _is_along(parameter: Tensor, input: Tensor) -> bool:
    """Whether a nested input may have it as its scale: for all, for each sample, or for each token."""
    if not input.is_nested or parameter.dim() == 0:
        return False
    if not parameter.is_nested:
        each_sample = parameter.size(0) == input.size(0) and set(parameter.shape[1:-1]) <= {1}
        return parameter.dim() == 1 or each_sample
    if parameter.layout != input.layout or parameter.size(0) != input.size(0):
        return False
    return parameter.layout is torch.strided or parameter.size(1) == input.size(1)


def _lines(parameter: Tensor, input: NestedTensor) -> Tensor:
    """A line for each token of a jagged input, or one for all."""
    if isinstance(parameter, NestedTensor):
        return parameter.values()
    if parameter.dim() == 1:
        return parameter
    lines = parameter.reshape(input.size(0), -1)
    return lines.repeat_interleave(input.offsets().diff(), dim=0, output_size=input.values().size(0))


_library = torch.library.Library("normext", "IMPL")
for _name in ("layer_norm", "rms_norm"):
    _library.impl(_name, partial(_row_norm, _name), "CompositeImplicitAutogradNestedTensor")
for _name in ("add_layer_norm", "add_rms_norm"):
    _library.impl(_name, partial(_add_norm, _name), "CompositeImplicitAutogradNestedTensor")
for _name in ("adaptive_layer_norm", "adaptive_rms_norm"):
    _library.impl(_name, partial(_adaptive_norm, _name), "CompositeImplicitAutogradNestedTensor")


def _channel_norm(name: str, *arguments: Any, **_: Any) -> Tensor:
    return getattr(torch_functional, name)(*arguments)


for _name in ("batch_norm", "group_norm", "instance_norm"):
    _library.impl(_name, partial(_channel_norm, _name), "CompositeImplicitAutogradNestedTensor")
