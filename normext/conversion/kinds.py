"""The norms of other libraries: how each kind is computed by normext, and which of them a module may be.

A kind is a class that stands in front of a module's own and has nothing but ``forward``; its settings are attributes of
the class made for the module's. It reads the module's parameters and epsilon where they are, at every call.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from normext import functional as F
from normext.conversion.classes import NAMESAKES, Settings, namesake

TENSORS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALF = (torch.bfloat16, torch.float16)


class Kind:
    """What every kind shares: which calls are its own, and what follows the norm."""

    joined_from: tuple[type[Module], type | None, Settings]
    activated = False  # whether drop and act follow, modules that timm's norms hold

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes one tensor that normext knows; anything else, a proxy or an unusual dtype, goes to the class's own."""
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or args[0].dtype not in TENSORS:
            return self.joined_from[0].forward(self, *args, **kwargs)  # type: ignore[arg-type]
        output = self.normalize(args[0])
        return self.act(self.drop(output)) if self.activated else output  # type: ignore[attr-defined]

    def normalize(self, x: Tensor) -> Tensor:
        """The norm alone."""
        raise NotImplementedError

    def __prepare_scriptable__(self) -> None:
        """Asked for by ``torch.jit.script``, which cannot compile :meth:`forward`."""
        name = self.joined_from[0].__qualname__
        raise RuntimeError(f"torch.jit.script: {name} is computed by normext; trace it, or normext.revert(model) first")


def _input(x: torch.dtype, weight: torch.dtype) -> torch.dtype:
    return x


def _promoted(x: torch.dtype, weight: torch.dtype) -> torch.dtype:
    return torch.promote_types(x, weight)


def _weight(x: torch.dtype, weight: torch.dtype) -> torch.dtype:
    return weight if weight in HALF else torch.promote_types(x, weight)


# The output's dtype where the weight's is not the input's: that of LayerNorm and Gemma, of Llama, of T5.
OUTPUTS: dict[str, Callable[[torch.dtype, torch.dtype], torch.dtype]] = {
    "input": _input, "promoted": _promoted, "weight": _weight
}  # fmt: skip


class _Mixing(Kind):
    """A kind whose parameters may have another dtype than its input."""

    epsilon: str | float  # the attribute that has it, or itself
    output = "input"  # which of OUTPUTS

    def eps(self) -> float:
        return getattr(self, self.epsilon) if isinstance(self.epsilon, str) else self.epsilon

    def mixed(self, x: Tensor, *given: Tensor | None) -> tuple[torch.dtype, Tensor, list[Tensor | None]]:
        """The output's dtype, and input and parameters in dtypes that the norms take together."""
        first = next((t for t in given if t is not None), x)
        if first.dtype == x.dtype:
            return x.dtype, x, list(given)
        output = OUTPUTS[self.output](x.dtype, first.dtype)
        wide = torch.promote_types(x.dtype, output)
        fits = wide in HALF and first.dtype == torch.float32
        return output, x.to(wide), [t if t is None or fits else t.to(wide) for t in given]


class Row(_Mixing):
    """LayerNorm or RMSNorm over the last dimensions, or over the channels of ``[N, C, *]``."""

    centered: bool
    channels: bool
    weight_offset: float
    parameters_from: tuple[str | None, str | None]  # what weight and bias are called

    def normalize(self, x: Tensor) -> Tensor:
        weight, bias = (getattr(self, name) if name else None for name in self.parameters_from)
        dtype, x, (weight, bias) = self.mixed(x, weight, bias)
        if self.channels:
            x = x.movedim(1, -1)
        shape = x.shape[-1:] if weight is None else weight.shape
        if self.centered:
            x = F.layer_norm(x, shape, weight, bias, self.eps(), weight_offset=self.weight_offset)
        else:
            x = F.rms_norm(x, shape, weight, self.eps(), weight_offset=self.weight_offset)
        if self.channels:
            x = x.movedim(-1, 1)
        return x if x.dtype == dtype else x.to(dtype)


class Frozen(_Mixing):
    """BatchNorm that keeps its statistics and parameters, all of them buffers."""

    def normalize(self, x: Tensor) -> Tensor:
        given = (self.running_mean, self.running_var, self.weight, self.bias)  # type: ignore[attr-defined]
        dtype, x, (mean, var, weight, bias) = self.mixed(x, *given)
        x = F.batch_norm(x, mean, var, weight, bias, training=False, eps=self.eps())
        return x if x.dtype == dtype else x.to(dtype)


class Inherited(Kind):
    """A norm of ``torch.nn`` that another library has written out again, computed by normext's class."""

    def normalize(self, x: Tensor) -> Tensor:
        base = namesake(self.joined_from[0])
        assert base is not None
        return NAMESAKES[base].forward(self, x)  # type: ignore[arg-type]


CONSTANTS = (1e-5, 1e-6, 1e-8, 1e-12)  # epsilons that are written into a forward
STATISTICS = {"running_mean", "running_var"}


def candidates(module: Module) -> Iterator[tuple[type[Kind], Settings]]:
    """What the module may be, by the parameters, buffers and numbers that it has; :mod:`probe` finds out."""
    tensors = {name for name, t in (*module._parameters.items(), *module._buffers.items()) if t is not None}
    activated = {"drop", "act"} <= module._modules.keys()
    if not activated and module._modules:
        return
    tail = (("activated", True),) if activated else ()
    epsilons: list[str | float] = [*(name for name, value in vars(module).items() if _is_epsilon(value)), *CONSTANTS]
    base = namesake(type(module))
    if base is not None and not issubclass(base, (torch.nn.LayerNorm, torch.nn.RMSNorm)):
        yield Inherited, tail
    elif tensors >= STATISTICS and tensors <= STATISTICS | {"weight", "bias"}:
        for epsilon, output in itertools.product(epsilons, OUTPUTS):
            yield Frozen, (*tail, ("epsilon", epsilon), ("output", output))
    elif len(tensors) <= 2:
        yield from _rows(tensors, epsilons, tail)


def _rows(tensors: set[str], epsilons: list[str | float], tail: Settings) -> Iterator[tuple[type[Kind], Settings]]:
    bias = "bias" if "bias" in tensors else None
    weight = next(iter(tensors - {"bias"}), None)
    if len(tensors) == 2 and not (weight and bias):
        return
    offsets, outputs = ((0.0, 1.0), OUTPUTS) if weight else ((0.0,), ("input",))
    for centered, channels, epsilon, offset, output in itertools.product(
        (False, True), (False, True), epsilons, offsets, outputs
    ):
        if centered or not bias:
            yield (
                Row,
                (
                    *tail,
                    ("parameters_from", (weight, bias)),
                    ("centered", centered),
                    ("channels", channels),
                    ("epsilon", epsilon),
                    ("weight_offset", offset),
                    ("output", output),
                ),
            )


def _is_epsilon(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value < 0.1
