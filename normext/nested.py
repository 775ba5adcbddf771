"""LayerNorm of nested tensors, strided and jagged; BatchNorm of them is torch's, which is an error."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nested._internal.nested_tensor import NestedTensor, nested_view_from_values_offsets_lengths
from torch.nn import functional as torch_functional

ops = torch.ops.normext


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """:func:`normext.layer_norm` of a nested tensor, which has its layout and its structure."""
    if not isinstance(input, NestedTensor):  # the strided layout
        rows = [ops.layer_norm(row, normalized_shape, weight, bias, eps) for row in input.unbind()]
        return torch.nested.as_nested_tensor(rows)
    if input.dim() - len(normalized_shape) <= input._ragged_idx:  # over the ragged dimension, or the batch: an error
        return torch_functional.layer_norm(input, normalized_shape, weight, bias, eps)
    return nested_view_from_values_offsets_lengths(
        ops.layer_norm(input.values(), normalized_shape, weight, bias, eps),
        input.offsets(),
        input.lengths(),
        input._ragged_idx,
        input._maybe_min_seqlen,
        input._maybe_max_seqlen,
    )


_library = torch.library.Library("normext", "IMPL")
_library.impl("layer_norm", layer_norm, "CompositeImplicitAutogradNestedTensor")
_library.impl("batch_norm", torch_functional.batch_norm, "CompositeImplicitAutogradNestedTensor")
