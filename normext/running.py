"""The update of running statistics under vmap and functionalize, which know of no operator that writes to tensors."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

ops = torch.ops.normext
_library = torch.library.Library("normext", "FRAGMENT")
_library.define(
    "functionalized_update(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, SymInt count, "
    "float momentum) -> ()"
)


def _functionalized(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: int, momentum: float
) -> None:
    """The update under functionalize: of statistics that it was given in torch's operators, which it knows.

    Statistics that the function has captured are updated at once, as torch's own are. This is an operator beside
    ``batch_norm_update_stats`` because torch.compile asks for kernels of functionalize, too, and has a better way.
    """
    if torch._is_functional_tensor(running_mean):
        for running, batch in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
            running.copy_((1 - momentum) * running.to(batch.dtype) + momentum * batch)
        return
    torch._sync(mean)
    torch._sync(var)
    mean, var = torch._from_functional_tensor(mean), torch._from_functional_tensor(var)
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize)):
        ops.batch_norm_update_stats(running_mean, running_var, mean, var, count, momentum)


def _mapped(
    update: Callable[..., None],
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
    update(*statistics, count, momentum)
    return None, None


for _name in ("batch_norm_update_stats", "functionalized_update"):
    torch.library.register_vmap(f"normext::{_name}", partial(_mapped, getattr(ops, _name)))
_library.impl("functionalized_update", _functionalized, "Functionalize")
_library.impl("functionalized_update", torch.library.fallthrough_kernel, "Autograd")
