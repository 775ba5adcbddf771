"""The norms of other libraries: how each kind is computed by normext, and which of them a module may be.

A kind says what a module is and where it has its parameters and epsilon, which are read there at every call.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from normext import functional as F
from normext.conversion.classes import NAMESAKES, namesake

HALF = (torch.bfloat16, torch.float16)


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


@dataclass(frozen=True)
class Kind:
    """What every kind has: an activation after the norm, and epsilon."""

    activated: bool  # whether drop and act follow, modules that timm's norms hold
    epsilon: str | float  # the attribute that has it, or itself
    output: str  # which of OUTPUTS

    def __call__(self, module: Any, x: Tensor) -> Tensor:
        """What the module computes."""
        output = self.normalize(module, x)
        return module.act(module.drop(output)) if self.activated else output

    def normalize(self, module: Any, x: Tensor) -> Tensor:
        """The norm alone."""
        raise NotImplementedError

    def eps(self, module: Module) -> float:
        """The module's epsilon."""
        return getattr(module, self.epsilon) if isinstance(self.epsilon, str) else self.epsilon

    def mixed(self, x: Tensor, *given: Tensor | None) -> tuple[torch.dtype, Tensor, list[Tensor | None]]:
        """The output's dtype, and input and parameters in dtypes that the norms take together."""
        first = next((t for t in given if t is not None), x)
        if first.dtype == x.dtype:
            return x.dtype, x, list(given)
        output = OUTPUTS[self.output](x.dtype, first.dtype)
        wide = torch.promote_types(x.dtype, output)
        fits = wide in HALF and first.dtype == torch.float32
        return output, x.to(wide), [t if t is None or fits else t.to(wide) for t in given]


@dataclass(frozen=True)
class Row(Kind):
    """LayerNorm or RMSNorm over the last dimensions, or over the channels of ``[N, C, *]``."""

    centered: bool
    channels: bool
    permuted: bool  # of channels: whether the output has them innermost in memory, or lies as the input does
    weight: str | None  # what the parameters are called
    bias: str | None
    weight_offset: float

    def normalize(self, module: Any, x: Tensor) -> Tensor:
        """Over as many dimensions as the weight has, or those it names, or the last."""
        weight, bias = (getattr(module, name) if name else None for name in (self.weight, self.bias))
        dtype, x, (weight, bias) = self.mixed(x, weight, bias)
        given = x
        if self.channels:
            x = x.movedim(1, -1)
        named = getattr(module, "normalized_shape", x.shape[-1:])
        shape, eps = named if weight is None else weight.shape, self.eps(module)
        if self.centered:
            x = F.layer_norm(x, shape, weight, bias, eps, weight_offset=self.weight_offset)
        else:
            x = F.rms_norm(x, shape, weight, eps, weight_offset=self.weight_offset)
        if self.channels:
            x = x.movedim(-1, 1)
        if self.channels and not self.permuted:
            x = x.contiguous(memory_format=_memory_format(given))
        return x if x.dtype == dtype else x.to(dtype)


def _memory_format(x: Tensor) -> torch.memory_format:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim, torch.contiguous_format)
    return last if x.is_contiguous(memory_format=last) else torch.contiguous_format


@dataclass(frozen=True)
class Frozen(Kind):
    """BatchNorm that keeps its statistics and parameters, all of them buffers."""

    def normalize(self, module: Any, x: Tensor) -> Tensor:
        """By the running statistics."""
        given = (module.running_mean, module.running_var, module.weight, module.bias)
        dtype, x, (mean, var, weight, bias) = self.mixed(x, *given)
        x = F.batch_norm(x, mean, var, weight, bias, training=False, eps=self.eps(module))
        return x if x.dtype == dtype else x.to(dtype)


@dataclass(frozen=True)
class Inherited(Kind):
    """A norm of ``torch.nn`` that another library has written out again, computed by normext's class."""

    def normalize(self, module: Any, x: Tensor) -> Tensor:
        """As the class of ``torch.nn`` that the module's derives from."""
        base = namesake(type(module))
        assert base is not None
        return NAMESAKES[base].forward(module, x)


CONSTANTS = (1e-5, 1e-6, 1e-8, 1e-12)  # epsilons that are written into a forward
STATISTICS = {"running_mean", "running_var"}


def candidates(module: Module) -> Iterator[Kind]:
    """What the module may be, by the parameters, buffers and numbers that it has; :mod:`probe` finds out."""
    tensors = {name for name, t in (*module._parameters.items(), *module._buffers.items()) if t is not None}
    activated = {"drop", "act"} <= module._modules.keys()
    if not activated and module._modules:
        return
    epsilons: list[str | float] = [
        *(name for name, value in vars(module).items() if isinstance(value, float) and 0 <= value < 0.1), *CONSTANTS
    ]  # fmt: skip
    base = namesake(type(module))
    if base is not None and not issubclass(base, (torch.nn.LayerNorm, torch.nn.RMSNorm)):
        yield Inherited(activated, "eps", "input")
    elif tensors >= STATISTICS and tensors <= STATISTICS | {"weight", "bias"}:
        for epsilon, output in itertools.product(epsilons, OUTPUTS):
            yield Frozen(activated, epsilon, output)
    elif len(tensors) < 2 or tensors == {"weight", "bias"}:
        weight, bias = next(iter(tensors - {"bias"}), None), "bias" if "bias" in tensors else None
        offsets = (0.0, 1.0) if weight else (0.0,)
        over = ((False, False), (True, True), (True, False))
        for centered, (channels, permuted) in itertools.product((False, True), over):
            for epsilon, offset, output in itertools.product(epsilons, offsets, OUTPUTS):
                if centered or not bias:
                    yield Row(activated, epsilon, output, centered, channels, permuted, weight, bias, offset)
