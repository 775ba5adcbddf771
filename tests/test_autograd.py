"""Derivatives of every kind and order, for every combination of norm, mode and parameters."""

import copy
import itertools
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import reference
import torch
from cases import CASES, PLAIN, Case
from inputs import gradients, leaves, parameters, running, values
from reference import assert_close
from torch import Tensor, func
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import normext

cases = pytest.mark.parametrize("case", CASES, ids=str)


# Against finite differences


@cases
def test_gradcheck(device: str, case: Case) -> None:
    assert gradcheck(
        case.ours,
        case.inputs(device),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=True,
    )


@cases
def test_gradgradcheck(device: str, case: Case) -> None:
    assert gradgradcheck(case.ours, case.inputs(device), check_fwd_over_rev=True, check_undefined_grad=True)


@cases
def test_third_order(device: str, case: Case) -> None:
    inputs = case.inputs(device)

    def third(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        result = function(*inputs).sin()  # so that nothing is linear in the parameters
        for _ in range(3):
            found = torch.autograd.grad((result * torch.randn_like(result)).sum(), inputs, create_graph=True)
            result = torch.cat([grad.flatten() for grad in found])
        return found

    torch.testing.assert_close(third(case.ours), third(case.plain))


# torch.func. Each transform of normext's norm is the same transform of the norm in elementary operations.


def loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A scalar of the function that no input enters linearly."""
    return lambda *inputs: function(*inputs).sin().square().sum()


def numbers(inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
    """The argument numbers of all inputs."""
    return tuple(range(len(inputs)))


def tangents(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A direction for each input, the same in every call."""
    return tuple(torch.cos(3 * t) for t in inputs)


def batch(inputs: tuple[Tensor, ...], dim: int = 0) -> tuple[Tensor, ...]:
    """Two different examples of each input along ``dim``."""
    return tuple(torch.stack([t, t.sin() + 1], dim) for t in inputs)


def along(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The derivative of the loss in a fixed direction."""
    return lambda *inputs: func.jvp(loss(function), inputs, tangents(inputs))[1]


TRANSFORMS = {
    "grad": lambda f, x: func.grad(loss(f), numbers(x))(*x),
    "vjp": lambda f, x: func.vjp(f, *x)[1](f(*x).cos()),
    "jvp": lambda f, x: func.jvp(f, x, tangents(x)),
    "jacrev": lambda f, x: func.jacrev(f, numbers(x))(*x),
    "jacfwd": lambda f, x: func.jacfwd(f, numbers(x))(*x),
    "hessian": lambda f, x: func.hessian(loss(f), numbers(x))(*x),
    "jacrev of jacrev": lambda f, x: func.jacrev(func.jacrev(loss(f), numbers(x)), numbers(x))(*x),
    "jacfwd of jacfwd": lambda f, x: func.jacfwd(func.jacfwd(loss(f), numbers(x)), numbers(x))(*x),
    "grad of grad": lambda f, x: func.grad(lambda *y: func.grad(loss(f))(*y).sin().sum(), numbers(x))(*x),
    "jvp of grad": lambda f, x: func.jvp(func.grad(loss(f), numbers(x)), x, tangents(x)),
    "grad of jvp": lambda f, x: func.grad(along(f), numbers(x))(*x),
    "jvp of jvp": lambda f, x: func.jvp(along(f), x, tangents(x)),
    "linearize": lambda f, x: func.linearize(f, *x)[1](*tangents(x)),
    "vmap of everything": lambda f, x: func.vmap(f)(*batch(x)),
    "vmap of the input": lambda f, x: func.vmap(f, (0, *[None] * len(x[1:])))(batch(x)[0], *x[1:]),
    "vmap along 1 to 2": lambda f, x: func.vmap(f, 1, 2)(*batch(x, 1)),
    "vmap along -1": lambda f, x: func.vmap(f, -1, -1)(*batch(x, -1)),
    "vmap of vmap": lambda f, x: func.vmap(func.vmap(f, 1, 1))(*batch(batch(x, 1))),
    "vmap of grad": lambda f, x: func.vmap(func.grad(loss(f), numbers(x)))(*batch(x)),
    "vmap of grad, shared parameters": lambda f, x: func.vmap(
        func.grad(loss(f), numbers(x)), (0, *[None] * len(x[1:]))
    )(batch(x)[0], *x[1:]),
    "vmap of jvp": lambda f, x: func.vmap(along(f))(*batch(x)),
    "vmap of hessian": lambda f, x: func.vmap(func.hessian(loss(f)))(*batch(x)),
    "grad of vmap": lambda f, x: func.grad(loss(func.vmap(f)), numbers(x))(*batch(x)),
    "jvp of vmap": lambda f, x: func.jvp(func.vmap(f), batch(x), tangents(batch(x))),
}


@cases
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_transforms(device: str, transform: Callable, case: Case) -> None:
    inputs = tuple(t.detach() for t in case.inputs(device))
    torch.testing.assert_close(transform(case.ours, inputs), transform(case.plain, inputs))


# Nestings, to the fourth order. Each letter takes a function of the inputs to another one: a derivative in a fixed
# direction, forward or reverse, or the sum over a batch.

Function = Callable[..., Tensor]
LETTERS: dict[str, Callable[[Function], Function]] = {
    "F": lambda f: lambda *x: func.jvp(f, x, tangents(x))[1].sin(),
    "R": lambda f: (
        lambda *x: sum((g * t).sin().sum() for g, t in zip(func.grad(f, numbers(x))(*x), tangents(x), strict=True))
    ),
    "D": lambda f: lambda *x: dual(f, x).sin(),
    "V": lambda f: lambda *x: func.vmap(f)(*batch(x)).sum(),
}
WORDS = ["".join(word) for length in (2, 3, 4) for word in itertools.product("FR", repeat=length)]
WORDS += [word for word in map("".join, itertools.product("FRV", repeat=3)) if word.count("V") == 1]
WORDS += ["DR", "DRR", "DVR", "FRRV", "VFRR", "RVFF", "FFVR", "VFFF"]


def dual(function: Function, inputs: tuple[Tensor, ...]) -> Tensor:
    """The derivative in a fixed direction by forward_ad itself, which has one level only."""
    with forward_ad.dual_level():
        output = function(*map(forward_ad.make_dual, inputs, tangents(inputs)))
        return forward_ad.unpack_dual(output).tangent


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES
        if case.norm == "rms_norm"
        or (case.affine[0] == case.affine[1] and case.operator != "group_norm" and case.activation is None)
    ]
    + [Case("group_norm", (False, False), activation="silu")]
    + [Case("batch_norm", (False, False), activation="silu", residual=True)],
    ids=str,
)
@pytest.mark.parametrize("word", WORDS)
def test_nestings(device: str, word: str, case: Case) -> None:
    # Of a few samples: of the input, and of what has as many.
    inputs = tuple(t.detach()[:3] if t.dim() > 1 else t.detach() for t in case.inputs(device))
    found, expected = loss(case.ours), loss(case.plain)
    for letter in reversed(word):
        found, expected = LETTERS[letter](found), LETTERS[letter](expected)
    torch.testing.assert_close(found(*inputs), expected(*inputs))


JACOBIANS = {
    "jacfwd of hessian": lambda f, n: func.jacfwd(func.hessian(f, n), n),
    "jacrev of jacfwd of jacrev": lambda f, n: func.jacrev(func.jacfwd(func.jacrev(f, n), n), n),
    "jacfwd of jacfwd of jacfwd": lambda f, n: func.jacfwd(func.jacfwd(func.jacfwd(f, n), n), n),
    "hessian of hessian": lambda f, n: func.hessian(func.hessian(f)),
}


@pytest.mark.parametrize("norm", ["layer_norm", "batch_norm"])
@pytest.mark.parametrize("jacobian", JACOBIANS.values(), ids=JACOBIANS.keys())
def test_whole_tensors_of_derivatives(device: str, jacobian: Callable, norm: str) -> None:
    inputs = (values(4, 2, dtype=torch.float64, device=device), *parameters((True, True), 2, dtype=torch.float64))
    rest = {"layer_norm": lambda w, b: ([2], w, b), "batch_norm": lambda w, b: (None, None, w, b, True)}[norm]
    found, expected = (
        jacobian(loss(lambda x, w, b: getattr(f, norm)(x, *rest(w, b))), (0, 1, 2))(*inputs)  # noqa: B023
        for f in (normext, PLAIN)
    )
    torch.testing.assert_close(found, expected)


@cases
def test_forward_mode_over_a_graph_made_before(device: str, case: Case) -> None:
    inputs = case.inputs(device)
    cotangent, tangent = (torch.randn_like(inputs[0]) for _ in range(2))

    def by_autograd(norm: Function) -> list[Tensor]:
        output = norm(*inputs)
        with forward_ad.dual_level():
            found = torch.autograd.grad(output, inputs, forward_ad.make_dual(cotangent, tangent))
            return [forward_ad.unpack_dual(t).tangent for t in found]

    def by_its_derivative(norm: Function) -> list[Tensor | None]:
        first = torch.autograd.grad(norm(*inputs), inputs, cotangent, create_graph=True)
        outputs, one = sum(t.sin().sum() for t in first), torch.ones((), dtype=torch.float64, device=device)
        with forward_ad.dual_level():
            found = torch.autograd.grad(
                outputs, (cotangent, *inputs), forward_ad.make_dual(one, one), allow_unused=True
            )
            return [None if t is None else forward_ad.unpack_dual(t).tangent for t in found]

    def by_func(norm: Function) -> list[Tensor]:
        pullback = func.vjp(norm, *(t.detach() for t in inputs))[1]
        first = lambda v: func.jvp(lambda u: [t.sin() for t in pullback(u)], (v,), (tangent,))[1]  # noqa: E731
        return [*first(cotangent), *func.jvp(first, (cotangent,), (tangent,))[1]]

    torch.testing.assert_close(by_autograd(case.ours), by_autograd(case.plain))
    cotangent.requires_grad_()
    torch.testing.assert_close(by_its_derivative(case.ours), by_its_derivative(case.plain))
    cotangent.requires_grad_(False)
    torch.testing.assert_close(by_func(case.ours), by_func(case.plain))


@pytest.mark.parametrize("norm", ["layer_norm", "batch_norm"])
@pytest.mark.parametrize("offset", [(1e30, 0.0), (1.0, 1e6)], ids=str)
def test_forward_mode_is_exact_far_from_zero(device: str, norm: str, offset: tuple[float, float]) -> None:
    x = values(4, 6, device=device) * offset[0] + offset[1]
    tangent = torch.randn_like(x) * offset[0]
    rest = ([6],) if norm == "layer_norm" else (None, None, None, None, True)
    found = func.jvp(lambda t: getattr(normext, norm)(t, *rest), (x,), (tangent,))
    expected = func.jvp(lambda t: getattr(PLAIN, norm)(t, *rest), (x.double(),), (tangent.double(),))
    torch.testing.assert_close(found, tuple(t.float() for t in expected))


@pytest.mark.parametrize("case", [case for case in CASES if any(case.affine)], ids=str)
def test_vmap_of_parameters_only(device: str, case: Case) -> None:
    x, *given = (t.detach() for t in case.inputs(device))
    batched = batch(tuple(given))
    dims = (None, *[0] * len(given))
    torch.testing.assert_close(func.vmap(case.ours, dims)(x, *batched), func.vmap(case.plain, dims)(x, *batched))


def test_vmap_of_running_statistics(device: str) -> None:
    x, (mean, var) = values(4, 3, 5, device=device), running(3, device=device)
    mean, var = torch.stack([mean, mean + 1]), torch.stack([var, var + 1])
    one_by_one = torch.stack([normext.batch_norm(x, m, v) for m, v in zip(mean, var, strict=True)])
    together = func.vmap(normext.batch_norm, (None, 0, 0))(x, mean, var)
    torch.testing.assert_close(together, one_by_one)


def test_vmap_updates_running_statistics(device: str) -> None:
    # At two levels, and whatever dimension is mapped: torch itself leaves the mean, not contiguous here, as it is.
    x = values(2, 6, 3, 4, 5, device=device)
    statistics = values(3, 4, 2, device=device), values(2, 3, 4, device=device).square()
    mean, var = (t.clone() for t in statistics)
    step = partial(normext.batch_norm, training=True, momentum=0.3)
    together = func.vmap(func.vmap(step, (1, 0, 0), 1), (0, 2, 0))(x, *statistics)
    for i, j in product(range(2), range(3)):
        torch.testing.assert_close(together[i, :, j], step(x[i, :, j], mean[j, :, i], var[i, j]))
    torch.testing.assert_close(statistics, (mean, var))


@pytest.mark.parametrize("transform", ["vmap", "vmap of grad", "vmap of vmap", "grad of vmap"])
def test_vmap_does_not_update_shared_running_statistics(device: str, transform: str) -> None:
    def norm(library: Any, x: Tensor) -> Tensor:
        return library.batch_norm(x, *statistics, training=True).sum()

    apply = {
        "vmap": func.vmap,
        "vmap of grad": lambda f: func.vmap(func.grad(f)),
        "vmap of vmap": lambda f: lambda x: func.vmap(func.vmap(f))(x.unsqueeze(0)),
        "grad of vmap": lambda f: func.grad(lambda x: func.vmap(f)(x).sum()),
    }[transform]
    messages, statistics = [], running(3, device=device)
    for library in (normext, torch.nn.functional):
        with pytest.raises(RuntimeError, match="were not batched") as raised:
            apply(partial(norm, library))(values(2, 4, 3, device=device))
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


FUNCTIONALIZED = {
    "functionalize": lambda f: func.functionalize(f),
    "grad": lambda f: func.functionalize(lambda *x: func.grad(loss(f), numbers(x))(*x)),
    "vjp of": lambda f: lambda *x: func.grad(loss(func.functionalize(f)), numbers(x))(*x),
    "jvp": lambda f: func.functionalize(lambda *x: func.jvp(f, x, tangents(x))),
    "vmap": lambda f: func.functionalize(lambda *x: func.vmap(f)(*batch(x))),
    "vmap of": lambda f: lambda *x: func.vmap(func.functionalize(f))(*batch(x)),
}


@cases
@pytest.mark.parametrize("transform", FUNCTIONALIZED.values(), ids=FUNCTIONALIZED.keys())
def test_functionalize(device: str, transform: Callable, case: Case) -> None:
    inputs = tuple(t.detach() for t in case.inputs(device))
    torch.testing.assert_close(transform(case.ours)(*inputs), transform(case.plain)(*inputs))


def steps(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Two steps of training, with an evaluation in between that needs the first one's update."""
    y = normext.batch_norm(x, mean, var, training=True, momentum=0.3)
    return normext.batch_norm(y, mean, var) + normext.batch_norm(y.sin(), mean, var, training=True)


UPDATES = {
    "functionalize": lambda *a: func.functionalize(steps)(*a),
    "functionalize, no views": lambda *a: func.functionalize(steps, remove="mutations_and_views")(*a),
    "functionalize of captured statistics": lambda x, *s: func.functionalize(lambda y: steps(y, *s))(x),
    "functionalize of grad": lambda *a: func.functionalize(func.grad(lambda *b: steps(*b).sum()))(*a),
    "functionalize of grad of captured statistics": lambda x, *s: func.functionalize(
        func.grad(lambda y: steps(y, *s).sum())
    )(x),
    "grad": lambda *a: func.grad(lambda *b: steps(*b).sum())(*a),
    "grad of functionalize": lambda *a: func.grad(lambda *b: func.functionalize(steps)(*b).sum())(*a),
    "grad of functionalize of captured statistics": lambda x, *s: func.grad(
        lambda y: func.functionalize(lambda z: steps(z, *s))(y).sum()
    )(x),
    "jacrev": lambda *a: func.jacrev(steps)(*a),
    "jacfwd": lambda *a: func.jacfwd(steps)(*a),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("transform", UPDATES.values(), ids=UPDATES.keys())
def test_transforms_update_running_statistics(device: str, transform: Callable, dtype: torch.dtype) -> None:
    x = values(4, 3, 5, dtype=dtype, device=device)
    statistics, expected = running(3, dtype=dtype, device=device), running(3, dtype=dtype, device=device)
    for a, b in zip(statistics, expected, strict=True):
        b.copy_(a)
    transform(x, *statistics)
    steps(x, *expected)
    torch.testing.assert_close(statistics, expected)


def test_per_sample_gradients_of_a_module(device: str) -> None:
    # The use torch.func was made for: gradients of each sample, through functional_call.
    module = torch.nn.Sequential(torch.nn.Linear(6, 5), normext.LayerNorm(5), torch.nn.Linear(5, 1)).to(device)
    weights, x = dict(module.named_parameters()), torch.randn(7, 6, device=device)

    def output(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return func.functional_call(module, weights, sample.unsqueeze(0)).square().sum()

    per_sample = func.vmap(func.grad(output), (None, 0))(weights, x)
    for i, sample in enumerate(x):
        expected = torch.autograd.grad(output(weights, sample), list(weights.values()))
        for found, wanted in zip(per_sample.values(), expected, strict=True):
            torch.testing.assert_close(found[i], wanted)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_ensembles_train(device: str, momentum: float | None) -> None:
    # Models of one architecture, stacked: each updates statistics of its own, as it would alone.
    models = [torch.nn.Sequential(torch.nn.Linear(6, 5), normext.BatchNorm1d(5, momentum=momentum)) for _ in range(3)]
    models = [model.to(device) for model in models]
    parameters, buffers = func.stack_module_state(models)

    def output(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return func.functional_call(models[0], (parameters, buffers), x)

    for _ in range(2):
        x = torch.randn(7, 6, device=device)
        together = func.vmap(output, (0, 0, None))(parameters, buffers, x)
        torch.testing.assert_close(together, torch.stack([copy.deepcopy(model)(x) for model in models]))
        alone = [dict(model.named_buffers()) for model in models if model(x) is not None]
    torch.testing.assert_close(buffers, {name: torch.stack([b[name] for b in alone]) for name in buffers})


# What else surrounds a backward pass


@cases
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(device: str, use_reentrant: bool, case: Case) -> None:
    inputs = case.inputs(device)
    outputs = [case.ours(*inputs), checkpoint(case.ours, *inputs, use_reentrant=use_reentrant)]
    direct, recomputed = (torch.autograd.backward(y, y.detach().cos()) or [t.grad for t in inputs] for y in outputs)
    for found, wanted in zip(recomputed, direct, strict=True):
        assert torch.equal(found, wanted)


@cases
def test_changing_the_input_before_backward_is_noticed(device: str, case: Case) -> None:
    inputs = case.inputs(device)
    x = inputs[0].clone()
    output = case.ours(x, *inputs[1:])
    if case.adds:  # what is saved is the sum
        x.add_(1)
        output.sum().backward()
    elif case.training or case.affine[0]:  # otherwise the gradient does not need it
        x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


@cases
def test_changing_the_bias_before_backward_changes_nothing(device: str, case: Case) -> None:
    if not case.affine[1] or case.activation is not None:
        pytest.skip("no bias, or one that the activation's derivative depends on")
    x, *rest = case.inputs(device)
    bias = rest[-1].clone()
    output = case.ours(x, *rest[:-1], bias)
    expected = torch.autograd.grad(output, [x, *rest], torch.ones_like(output), retain_graph=True)
    with torch.no_grad():
        bias.add_(1)
    torch.testing.assert_close(torch.autograd.grad(output, [x, *rest], torch.ones_like(output)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("norm", ["layer_norm", "batch_norm"])
def test_gradient_of_a_bias_alone_has_its_dtype(device: str, norm: str, dtype: torch.dtype) -> None:
    x = values(64, 3, dtype=torch.bfloat16, device=device)
    bias = torch.zeros(3, dtype=dtype, device=device, requires_grad=True)
    rest = ([3], None, bias) if norm == "layer_norm" else (None, None, None, bias, True)
    grad_output = values(64, 3, dtype=torch.bfloat16, device=device)
    (found,) = torch.autograd.grad(getattr(normext, norm)(x, *rest), bias, grad_output)
    torch.testing.assert_close(found, grad_output.double().sum(0).to(dtype))


# Empty inputs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 3, 0), (0, 3, 2, 2)], ids=str)
def test_empty_batch_norm_has_derivatives(device: str, shape: tuple[int, ...], training: bool) -> None:
    channels = shape[1] if len(shape) > 1 else 0
    x = torch.empty(shape, dtype=torch.float64, device=device, requires_grad=True)
    weight = torch.ones(channels, dtype=torch.float64, device=device, requires_grad=True)
    stats = running(channels, dtype=torch.float64, device=device)
    output = normext.batch_norm(x, *stats, weight, weight, training)
    first = torch.autograd.grad(output, [x, weight], torch.ones_like(output).requires_grad_(), create_graph=True)
    second = torch.autograd.grad(first, [x, weight], [torch.ones_like(t) for t in first], allow_unused=True)
    assert [t.shape for t in first] == [x.shape, weight.shape]
    assert [t is None or torch.equal(t, torch.zeros_like(t)) for t in (*first, *second)] == [True] * 4


@cases
def test_what_is_saved_is_packed_and_freed(device: str, case: Case) -> None:
    inputs = case.inputs(device)
    grad_output = torch.randn_like(inputs[0])
    expected = torch.autograd.grad(case.ours(*inputs), inputs, grad_output)
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> int:
        packed.append(tensor)
        return len(packed) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda i: packed[i]):
        output = case.ours(*inputs)
    statistics = 1 if "rms_norm" in case.norm else 2
    # The input or the sum, mean, rstd, and the weight; bias and residual where there is an activation: else nothing
    # reads them.
    after = 0 if case.activation is None else case.affine[1] + case.residual
    assert len(packed) == 1 + statistics + case.affine[0] + after
    for found, wanted in zip(torch.autograd.grad(output, inputs, grad_output), expected, strict=True):
        assert torch.equal(found, wanted)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(output, inputs, grad_output)


@cases
def test_inference_mode(device: str, case: Case) -> None:
    inputs = case.inputs(device)
    with torch.inference_mode():
        output = case.ours(*inputs)
    assert output.is_inference()
    assert torch.equal(output, case.ours(*inputs))


@pytest.fixture
def deterministic() -> None:
    """Deterministic algorithms, which also fill fresh tensors with NaN: nothing may be left unwritten."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deterministic_algorithms(device: str, deterministic: None, dtype: torch.dtype) -> None:
    x, grad_output = (values(4, 3, 70, dtype=dtype, device=device) for _ in range(2))
    weight, bias = parameters((True, True), 70, dtype=dtype, device=device)
    inputs = leaves(x, weight, bias)
    expected = reference.layer_norm(x, [70], weight, bias, grad_output=grad_output)
    output = normext.layer_norm(inputs[0], [70], *inputs[1:])
    found = [output, *gradients(output, inputs, grad_output)]
    wanted = [expected.output, expected.grad_input, expected.grad_weight, expected.grad_bias]

    weight, bias = parameters((True, True), 3, dtype=dtype, device=device)
    inputs = leaves(x, weight, bias)
    expected = reference.batch_norm(x, weight=weight, bias=bias, grad_output=grad_output)
    output = normext.batch_norm(inputs[0], None, None, *inputs[1:], training=True)
    found += [output, *gradients(output, inputs, grad_output)]
    wanted += [expected.output, expected.grad_input, expected.grad_weight, expected.grad_bias]
    for actual, value in zip(found, wanted, strict=True):
        assert_close(actual, value)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [("LayerNorm", (4, 6)), ("BatchNorm1d", (4, 6)), ("BatchNorm2d", (4, 6, 3, 3)), ("BatchNorm3d", (4, 6, 2, 2, 2))],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_autocast_gives_the_dtype_that_torch_gives(
    device: str, dtype: torch.dtype, norm: str, shape: tuple[int, ...]
) -> None:
    x = values(*shape, dtype=dtype, device=device)  # as a linear layer or a convolution before it would
    results = []
    for library in (normext, torch.nn):
        module = getattr(library, norm)(6 if norm != "LayerNorm" else shape[-1], device=device)
        with torch.autocast(device, dtype=torch.bfloat16):
            output = module(x)
        output.sum().backward()
        results.append((output, module.weight.grad, module.bias.grad))
    for ours, theirs in zip(*results, strict=True):
        # Where zero is right, torch's own gradient of bfloat16 is off by 0.04 on a GPU.
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=6e-2 if device == "cuda" else 2e-2)
