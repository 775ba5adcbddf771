"""The update of running statistics under vmap and functionalize, which know of no operator that writes to tensors."""

from typing import Any

import torch
from torch import Tensor


def composed_update(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: int, momentum: float
) -> None:
    """The update in torch's operators, in the batch statistics' dtype, with the unbiased variance."""
    for running, batch in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
        running.copy_((1 - momentum) * running.to(batch.dtype) + momentum * batch)


def _mapped(
    info: Any,
    in_dims: tuple[int | None, ...],
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    count: int,
    momentum: float,
) -> tuple[None, None]:
    """Mapped statistics are so many more channels; a batch's, mapped, do not fit into running ones that are not."""
    if None in in_dims[:2]:
        raise RuntimeError(
            "Batch norm got a batched tensor as input while the running_mean or running_var, which will be updated in "
            "place, were not batched.\nIf you are using a module and do not need eval mode, please set "
            "`track_running_stats` to be False.If you are using a prebuilt module and do not need eval mode, please "
            "see the functorch website for resources on how to patch your module to work with vmap"
        )
    statistics = [
        tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip((running_mean, running_var, mean, var), in_dims[:4], strict=True)
    ]
    torch.ops.normext.batch_norm_update_stats(*statistics, count, momentum)
    return None, None


torch.library.register_vmap("normext::batch_norm_update_stats", _mapped)
