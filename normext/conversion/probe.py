"""Finds out what a module computes: it and a candidate are given the same inputs, and must do the same with them.

Names tell nothing: a hundred classes of transformers are one formula, and others that are called alike are not. What
counts is what comes out: values, gradients, dtypes, strides and buffers, in training and evaluation, for rows of sizes
at which epsilon matters and at which it does not, with parameters that are not ones and zeros, in float32 and half
types, with parameters of another dtype than the input's, and under autocast. It is tried on a twin on the CPU that has
parameters of its own: the module's are not read, and may be on any device.
"""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._python_dispatch import _disable_current_modes

from normext.conversion.classes import joined, namesake
from normext.conversion.kinds import Kind, candidates

SCALES = (1.0, 1e3, 1e-2, 1e-3, 1e-4, 1e-6)  # of the rows, beside epsilons from 1e-12 on
FLOAT64, FLOAT32, BFLOAT16, FLOAT16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
IMAGE = (5, 3)  # height and width
LARGEST = 1 << 22  # elements of an input: no norm has so many parameters, a table of embeddings has
INEXACT = 1e-4  # the most that a module's own rounding may excuse: an epsilon that goes by the dtype is no rounding
EXACT, DERIVED, ROUNDED = (1e-4, 3e-6), (1e-3, 1e-4), (5e-2, 1e-1)  # relative and absolute: gradients, half types


@dataclass(frozen=True)
class Trial:
    """Circumstances: the dtypes of input and parameters, training or evaluation, and whether gradients are compared."""

    input: torch.dtype = FLOAT32
    parameters: torch.dtype = FLOAT32
    training: bool = True
    autocast: bool = False
    gradients: bool = False
    channels_last: bool = False  # of images only

    @property
    def tolerance(self) -> tuple[float, float]:
        """Relative and absolute."""
        if self.autocast or not self.input == self.parameters == FLOAT32:
            return ROUNDED
        return DERIVED if self.gradients else EXACT


TRIALS = (
    Trial(),
    Trial(training=False),
    Trial(gradients=True),
    Trial(channels_last=True),
    Trial(BFLOAT16, BFLOAT16),
    Trial(FLOAT16, FLOAT16),
    Trial(BFLOAT16, FLOAT32),
    Trial(FLOAT32, BFLOAT16),
    Trial(BFLOAT16, FLOAT32, autocast=True),
    Trial(FLOAT32, FLOAT32, autocast=True),
)


def recognize(module: Module, cls: type[Module]) -> Kind | str:
    """What the module, of this class, computes; or why it is none of them."""
    with _undisturbed():
        shapes = [
            shape for shape in _shapes(module) if _outcome(cls, cls.forward, module, TRIALS[0], shape) is not None
        ]
        if not shapes:
            return "it takes other inputs than a norm"
        usual = next((shape for shape in shapes if shape[2:] == IMAGE), shapes[0])
        trials = [trial for trial in TRIALS[1:] if usual[2:] == IMAGE or not trial.channels_last]
        given = [*((TRIALS[0], shape) for shape in shapes), *((trial, usual) for trial in trials)]
        own = cls, cls.forward, module
        outcomes = [(here, _outcome(*own, *here), _outcome(*own, *_wide(*here))) for here in given]
        converted = joined(cls)
        for kind in candidates(module):
            tried = ((o, w, _outcome(converted, kind, module, *here), here[0]) for here, o, w in outcomes)
            if all(_agree(expected, wide, got, trial.tolerance) for expected, wide, got, trial in tried):
                return kind
    return "it computes something else than normext's norms"


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """The caller's modes, random numbers and warnings are out of it."""
    with (
        _disable_current_modes(),
        torch._C.DisableTorchFunction(),
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _shapes(module: Module) -> list[tuple[int, ...]]:
    """Of inputs whose last dimensions, or second one, are the parameters'; the first is that of the rows' sizes."""
    tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None and t.ndim > 0]
    tail = tuple(tensors[0].shape) if tensors else getattr(module, "normalized_shape", (8,))
    rows = len(SCALES)
    alone = tail == (getattr(module, "num_groups", None),)  # torch's groups of one value are not zero, but rounding
    shapes = [(rows, *between, *tail) for between in ((), (2,), (2, 3))][alone:]
    if tensors or namesake(type(module)):  # nothing else has channels
        shapes += [(rows, tail[0], *spatial) for spatial in ((3,), IMAGE, (3, *IMAGE))]
    return [shape for shape in shapes if max([math.prod(shape), *(t.numel() for t in tensors)]) <= LARGEST]


def _wide(trial: Trial, shape: tuple[int, ...]) -> tuple[Trial, tuple[int, ...]]:
    """The same numbers in float64, which tell how far a module's float32 is off: groups of two values lose digits."""
    if trial.autocast or not trial.input == trial.parameters == FLOAT32:
        return trial, shape
    return dataclasses.replace(trial, input=FLOAT64, parameters=FLOAT64), shape


def _outcome(
    cls: type[Module], forward: Callable[[Any, Tensor], Any], module: Module, trial: Trial, shape: tuple[int, ...]
) -> list[Tensor] | None:
    """All that forward (and backward) of a twin give, or None where it takes no such input, or leaves something."""
    torch.default_generator.manual_seed(0)
    twin = _twin(cls, module, trial)
    scales = torch.tensor(SCALES if trial.input in (FLOAT32, FLOAT64) and not trial.gradients else [1.0] * len(SCALES))
    x = torch.randn(shape) * scales.view(-1, *[1] * (len(shape) - 1))
    if trial.channels_last:
        x = x.to(memory_format=torch.channels_last)
    x = x.to(trial.input).requires_grad_()
    before = set(vars(twin))
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=trial.autocast):
            y = forward(twin, x)
        if not isinstance(y, Tensor) or y.shape != x.shape or vars(twin).keys() != before:
            return None
        results = [y.detach(), *(t for t in twin._buffers.values() if t is not None)]
        if trial.gradients:
            wanted = [x, *(t for t in twin._parameters.values() if t is not None)]
            results += torch.autograd.grad(y, wanted, torch.randn(y.shape).to(y.dtype))
    except Exception:  # whatever it says of an input that it does not take
        return None
    return results


def _twin(cls: type[Module], module: Module, trial: Trial) -> Module:
    """A module of that class with the same attributes, with parameters and buffers of the same shapes, and no hooks."""
    twin = cls.__new__(cls)
    state: dict[str, Any] = {**vars(module), **vars(Module())}
    state["training"] = trial.training
    state["_parameters"] = {n: _drawn(t, trial.parameters, True) for n, t in module._parameters.items()}
    state["_buffers"] = {n: _drawn(t, trial.parameters, False) for n, t in module._buffers.items()}
    state["_modules"] = {n: m and _twin(type(m), m, trial) for n, m in module._modules.items()}
    vars(twin).update(state)
    return twin


def _drawn(tensor: Tensor | None, dtype: torch.dtype, parameter: bool) -> Any:
    """Values from 0.5 to 1.5: neither ones nor zeros, and variances must be positive. Counters start at zero."""
    if tensor is None:
        return None
    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    values = (torch.rand(tensor.shape) + 0.5).to(dtype)
    return torch.nn.Parameter(values) if parameter else values


def _agree(
    expected: list[Tensor] | None,
    wide: list[Tensor] | None,
    got: list[Tensor] | None,
    tolerance: tuple[float, float],
) -> bool:
    """Whether a candidate does the same as far as the module is exact, or the module did not take this input."""
    if expected is None:
        return True
    if got is None or len(got) != len(expected):
        return False
    return expected[0].stride() == got[0].stride() and all(
        a.dtype == b.dtype and bool((torch.isclose(a.float(), b.float(), *tolerance) | _within(a, w, b)).all())
        for a, w, b in zip(expected, wide or expected, got, strict=True)
    )


def _within(a: Tensor, wide: Tensor, b: Tensor) -> Tensor:
    """Where b is no further from a than a few times what a is from its own value in float64, within reason."""
    return (a.double() - b.double()).abs() <= (4 * (a.double() - wide.double()).abs()).clamp(max=INEXACT)
