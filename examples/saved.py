"""What autograd keeps of a computation for its backward: the memory that fused layers save in training."""

import torch
from torch import Tensor, nn


def saved_bytes(module: nn.Module, *inputs: Tensor) -> int:
    """The memory that is kept for the backward of ``module(*inputs)`` inside a network, beside the parameters."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # While the output lives, so does what is kept for it, and addresses are its own. Layers before want gradients.
        output = module(*(x.detach().requires_grad_() for x in inputs))
    for parameter in module.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    del output
    return sum(kept.values())
