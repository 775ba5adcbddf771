"""Who is measured. Adding a peer is one entry in PEERS: a name, and a function that imports and returns its norms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import normext
from benchmarks.cases import Case

Norm = Callable[..., Tensor]


@dataclass(frozen=True)
class Peer:
    """An implementation that may be installed.

    Attributes:
        name: as the reports call it.
        load: returns the peer's functions by norm, each with the arguments, in order, of its namesake in
            ``torch.nn.functional``; raises ImportError where the peer is not installed.
        devices: where it runs.

    """

    name: str
    load: Callable[[], dict[str, Norm]]
    devices: tuple[str, ...] = ("cuda",)


def _normext() -> dict[str, Norm]:
    return {"layer_norm": normext.layer_norm, "batch_norm": normext.batch_norm}


def _eager() -> dict[str, Norm]:
    return {"layer_norm": F.layer_norm, "batch_norm": F.batch_norm}


def _compile() -> dict[str, Norm]:
    # compiled for each shape on its own, the best it can do; a wrapper, since Dynamo does not trace torch's functions
    def layer_norm(*arguments: object) -> Tensor:
        return F.layer_norm(*arguments)  # type: ignore[arg-type]

    def batch_norm(*arguments: object) -> Tensor:
        return F.batch_norm(*arguments)  # type: ignore[arg-type]

    return {norm.__name__: torch.compile(norm, dynamic=False, fullgraph=True) for norm in (layer_norm, batch_norm)}


def _last_dimension(function: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> dict[str, Norm]:
    """LayerNorm from a function of (input, weight, bias, eps) that knows the last dimension only."""

    def layer_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        if len(normalized_shape) > 1:
            raise NotImplementedError("normalizes over the last dimension only")
        return function(input, weight, bias, eps)

    return {"layer_norm": layer_norm}


def _liger() -> dict[str, Norm]:
    from liger_kernel.transformers.functional import liger_layer_norm

    return _last_dimension(liger_layer_norm)


def _flash_attention() -> dict[str, Norm]:
    from flash_attn.ops.triton.layer_norm import layer_norm_fn

    return _last_dimension(lambda input, weight, bias, eps: layer_norm_fn(input, weight, bias, eps=eps))


def _apex() -> dict[str, Norm]:
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine

    return {"layer_norm": lambda x, shape, weight, bias, eps: fused_layer_norm_affine(x, weight, bias, shape, eps)}


NORMEXT, EAGER, COMPILE = "normext", "torch eager", "torch.compile"

PEERS = [
    Peer(NORMEXT, _normext, ("cpu", "cuda")),
    Peer(EAGER, _eager, ("cpu", "cuda")),
    Peer(COMPILE, _compile, ("cpu", "cuda")),
    Peer("Liger", _liger),
    Peer("flash-attention", _flash_attention),
    Peer("apex", _apex),
]


def _check(norms: dict[str, Norm], device: str) -> None:
    """Raises unless an optional peer, called the way we call it, computes what torch does: versions differ."""
    for norm, function in norms.items():
        case = Case(norm, "check", (8, 64))
        leaves = case.leaves(device, gradients=True)
        result, expected = (f(*case.arguments(leaves, training=True)) for f in (function, getattr(F, norm)))
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def installed(device: str) -> tuple[dict[str, dict[str, Norm]], dict[str, str]]:
    """The norms of each peer that runs here, by peer, and for each other peer of this device why it does not."""
    found, missing = {}, {}
    for peer in PEERS:
        if device not in peer.devices:
            continue
        try:
            found[peer.name] = peer.load()
            if peer.name not in (NORMEXT, EAGER, COMPILE):
                _check(found[peer.name], device)
        except Exception as error:  # whatever is wrong with a peer, the run goes on without it
            if peer.name in (NORMEXT, EAGER):
                raise
            found.pop(peer.name, None)
            missing[peer.name] = f"{type(error).__name__}: {error}"
    return found, missing
