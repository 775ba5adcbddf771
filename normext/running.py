"""The update of running statistics where an operator that writes to tensors cannot stay one: under vmap, and where a
program is made free of such writes.

The latter is functionalize, and what every compiler and exporter does first. Left alone it wraps the operator into one
that names what it writes to, which ONNX does not know; composed, the update is a few operators that everybody knows.
"""

from typing import Any

import torch
from torch import Tensor

ops = torch.ops.normext


def _functionalized(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: int, momentum: float
) -> None:
    """The update of statistics that functionalize knows, in torch's operators.

    Statistics that a function under ``torch.func.functionalize`` has captured are updated at once, as torch's own are.
    """
    if torch._is_functional_tensor(running_mean):
        statistics = (running_mean, running_var, mean, var)
        ops.batch_norm_update_stats.default._op_dk(torch._C.DispatchKey.Meta, *statistics, count, momentum)  # checks
        for running, batch in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
            running.copy_((1 - momentum) * running.to(batch.dtype) + momentum * batch)
        return
    torch._sync(mean)
    torch._sync(var)
    mean, var = torch._from_functional_tensor(mean), torch._from_functional_tensor(var)
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize)):
        ops.batch_norm_update_stats(running_mean, running_var, mean, var, count, momentum)


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
    ops.batch_norm_update_stats(*statistics, count, momentum)
    return None, None


torch.library.register_vmap("normext::batch_norm_update_stats", _mapped)
_library = torch.library.Library("normext", "IMPL")
_library.impl("batch_norm_update_stats", _functionalized, "Functionalize")
