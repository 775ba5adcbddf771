"""Activations computed with the norm before them: in a norm that holds its activation, and in a ``Sequential``."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import Module

from normext.conversion.classes import NAMESAKES, Joined, joined, namesake
from normext.conversion.kinds import Inherited

Change = tuple[type[Module], dict[str, Any]]  # a module's new class, and attributes that it gets


def fused(model: Module, changes: dict[Module, Change]) -> dict[Module, Change]:
    """The changes, and what joins activations to the norms among them."""
    joint = dict(changes)
    for module, (cls, _) in changes.items():
        original, kind = cls.joined_from if issubclass(cls, Joined) else (cls, None)
        if isinstance(kind, Inherited) and kind.activated and _takes_one(module):
            drop, act = module._modules["drop"], module._modules["act"]
            activation = _activation(act) if type(drop) is nn.Identity and not _hooked(drop) else {}
            if activation:
                joint[module] = joined(original, dataclasses.replace(kind, activated=False)), activation
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    for norm, act in _pairs(model):
        alone = places[norm] == places[act] == 1 and not _hooked(norm)
        activation = _activation(act)
        if alone and activation and norm in changes and norm._modules == {} and _takes_one(norm):
            joint[norm] = changes[norm][0], activation
            joint[act] = joined(type(act), passed), {}
    return joint


def passed(module: Module, x: Tensor) -> Tensor:
    """What is left of an activation that the norm before it computes."""
    return x


def _pairs(model: Module) -> Iterator[tuple[Module, Module]]:
    """What follows one another in a Sequential."""
    for module in model.modules():
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            yield from zip(module, list(module)[1:], strict=False)


def _activation(module: Any) -> dict[str, Any]:
    """What a norm is told that is to compute this one too; nothing if it is none that norms know, or has hooks."""
    if _hooked(module) or "forward" in vars(module):
        return {}
    if type(module) is nn.LeakyReLU:
        return {"activation": ("leaky_relu", module.negative_slope)}
    name = {nn.ReLU: "relu", nn.SiLU: "silu"}.get(type(module))  # type: ignore[call-overload]
    return {"activation": name} if name else {}


def _takes_one(norm: Module) -> bool:
    base = namesake(type(norm))
    return base is not None and hasattr(NAMESAKES[base], "activation")


def _hooked(module: Module) -> bool:
    """Whether anything else sees what goes in or comes out."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(vars(module)[kind] for kind in kinds)
