"""Finds out what a module computes: it and a candidate are given the same inputs, and must do the same with them.

Names tell nothing: a hundred classes of transformers are one formula, and others that are called alike are not. What
counts is what comes out: values, gradients, dtypes, strides and buffers, in training and evaluation, for rows of sizes
at which epsilon matters and at which it does not, with parameters that are not ones and zeros, in float32 and half
types, with parameters of another dtype than the input's, and under autocast. It is tried on a twin on the CPU that has
parameters of its own: the module's are not read, and may be on any device.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._python_dispatch import _disable_current_modes

from normext.conversion.classes import joined
from normext.conversion.kinds import candidates

SCALES = (1.0, 1e3, 1e-2, 1e-3, 1e-4, 1e-6)  # of the rows, beside epsilons from 1e-12 on
ROUNDING = {torch.float32: (1e-4, 3e-6), torch.bfloat16: (3e-2, 3e-2), torch.float16: (5e-3, 5e-3)}
FLOAT32, BFLOAT16, FLOAT16 = ROUNDING


@dataclass(frozen=True)
class Trial:
    """Circumstances: the dtypes of input and parameters, training or evaluation, and whether gradients are compared."""

    input: torch.dtype = FLOAT32
    parameters: torch.dtype = FLOAT32
    training: bool = True
    autocast: bool = False
    gradients: bool = False


TRIALS = (
    Trial(),
    Trial(training=False),
    Trial(gradients=True),
    Trial(BFLOAT16, BFLOAT16),
    Trial(FLOAT16, FLOAT16),
    Trial(BFLOAT16, FLOAT32),
    Trial(FLOAT32, BFLOAT16),
    Trial(BFLOAT16, FLOAT32, autocast=True),
    Trial(FLOAT32, FLOAT32, autocast=True),
)


def recognize(module: Module) -> type[Module] | str:
    """The class that computes what the module does, or why there is none."""
    cls = type(module)
    with _disable_current_modes(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        shapes = [shape for shape in _shapes(module) if _outcome(cls, module, TRIALS[0], shape) is not None]
        if not shapes:
            return "it takes other inputs than a norm"
        given = [*((TRIALS[0], shape) for shape in shapes), *((trial, shapes[0]) for trial in TRIALS[1:])]
        outcomes = [_outcome(cls, module, *circumstances) for circumstances in given]
        for kind, settings in candidates(module):
            converted = joined(cls, kind, settings)
            tried = zip(given, outcomes, strict=True)
            if all(_agree(outcome, _outcome(converted, module, *here), here[0].input) for here, outcome in tried):
                return converted
    return "it computes something else than normext's norms"


def _shapes(module: Module) -> Iterator[tuple[int, ...]]:
    """Of inputs whose last dimensions, or second one, are the parameters'; the first is that of the rows' sizes."""
    tensors = (*module._parameters.values(), *module._buffers.values())
    tail = next((tuple(t.shape) for t in tensors if t is not None and t.ndim > 0), (8,))
    rows = len(SCALES)
    yield from ((rows, *tail), (rows, 2, *tail), (rows, 2, 3, *tail))
    for spatial in ((3,), (3, 2), (3, 2, 2)):
        yield (rows, tail[0], *spatial)


def _outcome(cls: type[Module], module: Module, trial: Trial, shape: tuple[int, ...]) -> list[Tensor] | None:
    """Everything that a forward (and a backward) gives, or None where this module takes no such input."""
    torch.manual_seed(0)
    twin = _twin(cls, module, trial)
    scales = torch.tensor(SCALES if trial.input == FLOAT32 and not trial.gradients else [1.0] * len(SCALES))
    x = torch.randn(shape) * scales.view(-1, *[1] * (len(shape) - 1))
    x = x.to(trial.input).requires_grad_()
    before = set(vars(twin))
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=trial.autocast):
            y = cls.forward(twin, x)
        if not isinstance(y, Tensor) or vars(twin).keys() != before:
            return None
        results = [y.detach(), *(t for t in twin._buffers.values() if t is not None)]
        if trial.gradients:
            wanted = [x, *(t for t in twin._parameters.values() if t is not None)]
            results += torch.autograd.grad(y, wanted, torch.randn(y.shape, dtype=y.dtype))
    except Exception:  # whatever it says of an input that it does not take
        return None
    return results


def _twin(cls: type[Module], module: Module, trial: Trial) -> Module:
    """A module of that class with the same attributes, parameters and buffers of the same shapes, and no hooks."""
    twin = cls.__new__(cls)
    state: dict[str, Any] = {**copy.copy(vars(module)), **vars(Module())}
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


def _agree(expected: list[Tensor] | None, got: list[Tensor] | None, dtype: torch.dtype) -> bool:
    """Whether a candidate does the same, or the module did not take this input."""
    if expected is None:
        return True
    if got is None or len(got) != len(expected):
        return False
    rtol, atol = ROUNDING[dtype]
    return all(
        a.dtype == b.dtype and a.stride() == b.stride() and torch.allclose(a.float(), b.float(), rtol, atol)
        for a, b in zip(expected, got, strict=True)
    )
