"""What a call costs, on tensors too small for the arithmetic to count: Python, dispatch, checks, autograd, threads."""

from functools import partial

import torch
import torch.nn.functional as F

import normext
from benchmarks.cases import EPS, Case
from benchmarks.peers import EAGER, NORMEXT
from benchmarks.timing import Call

TINY = [
    (Case("layer_norm", "call", (4, 64)), "LayerNorm", (64,)),
    (Case("rms_norm", "call", (4, 64)), "RMSNorm", (64,)),
    (Case("batch_norm", "call", (4, 64)), "BatchNorm1d", (64,)),
    (Case("batch_norm", "call", (2, 8, 4, 4)), "BatchNorm2d", (8,)),
]


def calls(device: str) -> dict[str, dict[str, Call]]:
    """The contenders of each call, by what the call is.

    With gradients the forward pass also records the backward pass. BatchNorm computes the batch's statistics with
    gradients, and uses the running ones without.
    """
    found: dict[str, dict[str, Call]] = {}
    for case, module, sizes in TINY:
        for gradients in (False, True):
            label = f"{case.label}, {'with' if gradients else 'without'} gradients"
            leaves = case.leaves(device, gradients)
            found[f"F.{case.norm} {label}"] = {
                NORMEXT: partial(getattr(normext, case.norm), *case.arguments(leaves, gradients)),
                EAGER: partial(getattr(F, case.norm), *case.arguments(leaves, gradients)),
            }
            layers = {
                NORMEXT: getattr(normext, module)(*sizes, eps=EPS, device=device),
                EAGER: getattr(torch.nn, module)(*sizes, eps=EPS, device=device),
            }
            found[f"nn.{module} {label}"] = {
                name: partial(layer.train(gradients).requires_grad_(gradients), leaves[0])
                for name, layer in layers.items()
            }
    return found
