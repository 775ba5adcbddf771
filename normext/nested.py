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


_library = torch.library.Library("normext", "IMPL")
for _name in ("layer_norm", "rms_norm"):
    _library.impl(_name, partial(_row_norm, _name), "CompositeImplicitAutogradNestedTensor")
for _name in ("add_layer_norm", "add_rms_norm"):
    _library.impl(_name, partial(_add_norm, _name), "CompositeImplicitAutogradNestedTensor")


def _channel_norm(name: str, *arguments: Any, **_: Any) -> Tensor:
    return getattr(torch_functional, name)(*arguments)


for _name in ("batch_norm", "group_norm", "instance_norm"):
    _library.impl(_name, partial(_channel_norm, _name), "CompositeImplicitAutogradNestedTensor")
