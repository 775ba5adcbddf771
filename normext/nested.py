"""Row norms of nested tensors, strided and jagged; channel norms of them are torch's, which is an error."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nested._internal.nested_tensor import NestedTensor, nested_view_from_values_offsets_lengths
from torch.nn import functional as torch_functional

ops = torch.ops.normext


def _row_norm(name: str, input: Tensor, normalized_shape: Sequence[int], *arguments: Any, **options: Any) -> Tensor:
    """The norm of a nested tensor, which has its layout and its structure."""
    norm: Callable[..., Tensor] = getattr(ops, name)
    if not isinstance(input, NestedTensor):  # the strided layout
        rows = [norm(row, normalized_shape, *arguments, **options) for row in input.unbind()]
        return torch.nested.as_nested_tensor(rows)
    if input.dim() - len(normalized_shape) <= input._ragged_idx:  # over the ragged dimension, or the batch: an error
        return getattr(torch_functional, name)(input, normalized_shape, *arguments)
    return nested_view_from_values_offsets_lengths(
        norm(input.values(), normalized_shape, *arguments, **options),
        input.offsets(),
        input.lengths(),
        input._ragged_idx,
        input._maybe_min_seqlen,
        input._maybe_max_seqlen,
    )


_library = torch.library.Library("normext", "IMPL")
for _name in ("layer_norm", "rms_norm"):
    _library.impl(_name, partial(_row_norm, _name), "CompositeImplicitAutogradNestedTensor")


def _channel_norm(name: str, *arguments: Any, **_: Any) -> Tensor:
    return getattr(torch_functional, name)(*arguments)


for _name in ("batch_norm", "group_norm", "instance_norm"):
    _library.impl(_name, partial(_channel_norm, _name), "CompositeImplicitAutogradNestedTensor")
