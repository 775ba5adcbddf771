"""What TorchScript sees of the norms: a script that calls a function calls its operator.

The functions' bodies, which look for transforms and modes, are for Python only.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.jit._builtins import _register_builtin
from torch.jit._script import _script_impl  # type: ignore[attr-defined]
from torch.jit._state import _set_jit_overload_cache

from normext import functional
from normext.activations import SLOPE, Activation, parts


# The slope is SLOPE, written out: a script sees no number of its module.
def _name(activation: str | None) -> tuple[str | None, float]:
    return activation, 0.01


def _name_and_slope(activation: tuple[str, float]) -> tuple[str | None, float]:
    if activation[0] != "leaky_relu":  # the others have no slope, and their operators ask for none
        raise ValueError(
            "expected activation to be None, 'relu', 'leaky_relu', ('leaky_relu', slope) or 'silu', "
            f"but got ('{activation[0]}', {activation[1]})"
        )
    return activation


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: Activation = None,
) -> Tensor:
    name, slope = parts(activation)
    given = (input, running_mean, running_var, weight, bias, training, momentum, eps)
    return torch.ops.normext.batch_norm(*given, residual=residual, activation=name, slope=slope)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: Activation = None,
) -> Tensor:
    name, slope = parts(activation)
    return torch.ops.normext.group_norm(input, num_groups, weight, bias, eps, activation=name, slope=slope)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: Activation = None,
) -> Tensor:
    name, slope = parts(activation)
    given = (input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return torch.ops.normext.instance_norm(*given, activation=name, slope=slope)


def _for_activations(scripted: Callable[..., Any]) -> list[Any]:
    """TorchScript's types are static: one function takes a name or None, and one a name with a slope."""
    assert isinstance(scripted, FunctionType) and scripted.__defaults__ is not None
    overloads = []
    for type_, default in ((str | None, None), (tuple[str, float], ("leaky_relu", SLOPE))):
        names = {**globals(), "Activation": type_}  # where it looks annotations up
        defaults = (*scripted.__defaults__[:-1], default)
        overloads.append(_script_impl(FunctionType(scripted.__code__, names, scripted.__name__, defaults)))
    return overloads


_set_jit_overload_cache(parts, [_script_impl(_name), _script_impl(_name_and_slope)])
_activated: dict[str, Callable[..., Any]] = {
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
}
for _function in functional.__all__:
    if _function in _activated:
        _set_jit_overload_cache(getattr(functional, _function), _for_activations(_activated[_function]))
    else:
        _register_builtin(getattr(functional, _function), f"normext::{_function}")
