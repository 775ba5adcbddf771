"""Tensor subclasses and modes: they see the calls, and keep their type."""

from typing import Any

import pytest
import torch
from cases import CASES, Case
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import normext

cases = pytest.mark.parametrize("case", CASES, ids=str)


class Tagged(Tensor):
    """A subclass with torch's own ``__torch_function__``, which keeps the type."""


class Logged(Tensor):
    """A subclass that notes what it is handed."""

    calls: list[Any] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        cls.calls.append((func, args, kwargs))
        return super().__torch_function__(func, types, args, kwargs or {})


class Calls(TorchFunctionMode):
    """A mode that notes every call."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """A mode that notes every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class Wrapped(Tensor):
    """A subclass by ``__torch_dispatch__``, around another tensor."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> "Wrapped":
        wrapped = Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), dtype=inner.dtype, device=inner.device, requires_grad=requires_grad
        )
        wrapped.inner = inner
        return wrapped

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        args, kwargs = tree_map_only(cls, lambda t: t.inner, (args, kwargs or {}))
        return tree_map_only(Tensor, cls, func(*args, **kwargs))


@cases
@pytest.mark.parametrize("which", [0, 1, -1], ids=["input", "weight or input", "last parameter or input"])
def test_subclasses_keep_their_type(device: str, which: int, case: Case) -> None:
    inputs = [t.detach() for t in case.inputs(device)]
    expected = case.ours(*inputs)
    which = which if len(inputs) > 1 else 0
    inputs[which] = inputs[which].as_subclass(Tagged).requires_grad_()
    output = case.ours(*inputs)
    assert type(output) is Tagged
    assert torch.equal(output.as_subclass(Tensor), expected)
    output.sum().backward()
    assert inputs[which].grad is not None


@cases
def test_subclasses_see_the_call(device: str, case: Case) -> None:
    inputs = [t.detach() for t in case.inputs(device)]
    Logged.calls.clear()
    case.ours(inputs[0].as_subclass(Logged), *inputs[1:])
    (call,) = (call for call in Logged.calls if call[0] is getattr(normext, case.norm))
    assert isinstance(call[1][0], Logged)


def test_running_statistics_may_be_of_a_subclass(device: str) -> None:
    x, mean, var = torch.randn(4, 3, device=device), torch.zeros(3, device=device), torch.ones(3, device=device)
    assert type(normext.batch_norm(x, mean.as_subclass(Tagged), var)) is Tagged
    assert type(normext.batch_norm(x, mean, var.as_subclass(Tagged), training=True)) is Tagged


@cases
def test_modes_see_the_call(device: str, case: Case) -> None:
    inputs = case.inputs(device)
    expected = case.ours(*inputs)
    with Calls() as calls:
        output = case.ours(*inputs)
    assert calls.seen.count(getattr(normext, case.norm)) == 1
    assert torch.equal(output, expected)


def test_modes_see_the_calls_of_modules(device: str) -> None:
    model = torch.nn.Sequential(normext.BatchNorm1d(3), normext.LayerNorm(3)).to(device)
    with Calls() as calls:
        model(torch.randn(4, 3, device=device))
    assert [f for f in calls.seen if f in (normext.batch_norm, normext.layer_norm)] == [
        normext.batch_norm,
        normext.layer_norm,
    ]


@cases
@pytest.mark.parametrize("subclass", [Tagged, Logged])
def test_compiled_subclasses_keep_their_type(device: str, subclass: type[Tensor], case: Case) -> None:
    torch.compiler.reset()
    inputs = [t.detach() for t in case.inputs(device)]
    compiled = torch.compile(case.ours, fullgraph=True, backend="eager")
    output = compiled(inputs[0].as_subclass(subclass), *inputs[1:])
    assert type(output) is subclass
    assert torch.equal(output.as_subclass(Tensor), case.ours(*inputs))


@cases
def test_dispatch_modes_see_the_operators(device: str, case: Case) -> None:
    inputs = case.inputs(device)
    with Operators() as operators:
        output = case.ours(*inputs)
        torch.autograd.grad(output.sum(), inputs)
    assert operators.seen.count(getattr(torch.ops.normext, f"{case.operator}_forward").default) == 1
    assert operators.seen.count(getattr(torch.ops.normext, case.backward).default) == 1


@cases
def test_dispatch_subclasses(device: str, case: Case) -> None:
    inputs = case.inputs(device)
    wrapped = [Wrapped(t.detach(), requires_grad=True) for t in inputs]
    output = case.ours(*wrapped)
    assert type(output) is Wrapped
    torch.testing.assert_close(output.inner, case.ours(*inputs))
    gradients = torch.autograd.grad(output.sin().sum(), wrapped)
    expected = torch.autograd.grad(case.ours(*inputs).sin().sum(), inputs)
    torch.testing.assert_close([g.inner for g in gradients], list(expected))
