"""What norms with a residual have of their own: the sum. The rest is in test_row_norms.py."""

import copy
from collections.abc import Sequence

import pytest
import torch
from inputs import DTYPES, HALF, assert_same, copies, dtype_name, values
from norms import ADD_NORMS, EPS, RowNorm, norms
from reference import Expected, assert_close, plus, rounding
from torch import Tensor

import normext

add_norms = norms(ADD_NORMS)
# (dtype of the input, dtype of the residual)
PAIRS = [(dtype, dtype) for dtype in DTYPES] + [(dtype, torch.float32) for dtype in HALF]
pairs = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(map(dtype_name, pair)))
SIZES = [(5, 33), (40, 256), (3, 9000)]
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


def add(norm: RowNorm, x: Tensor, residual: Tensor, *parameters: Tensor | None, eps: float = EPS) -> tuple[Tensor, ...]:
    """The function, over the last dimension."""
    given = parameters if norm.centered else parameters[:1]
    return getattr(normext, norm.name)(x, residual, x.shape[-1:], *given, eps=eps)


def apart(norm: RowNorm, total: Tensor, *parameters: Tensor | None) -> Tensor:
    """The norm alone, of a sum."""
    given = parameters if norm.centered else parameters[:1]
    return getattr(normext, norm.name.removeprefix("add_"))(total, total.shape[-1:], *given, eps=EPS)


@add_norms
@sizes
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_is_the_two_operators_run_apart(backend: str, norm: RowNorm, dtype: torch.dtype, size: tuple[int, int]) -> None:
    x, residual = (values(*size, dtype=dtype, device=backend) for _ in range(2))
    parameters = norm.parameters(size[1], dtype=dtype, device=backend)
    output, total = add(norm, x, residual, *parameters)
    assert torch.equal(total, x + residual)
    assert_same(output, apart(norm, total, *parameters))


@add_norms
@sizes
@pairs
def test_gradients(backend: str, norm: RowNorm, pair: tuple[torch.dtype, torch.dtype], size: tuple[int, int]) -> None:
    """All of it in wide arithmetic; of the residual's gradient, the number is the input's, rounded to its dtype."""
    x, grad_output = (values(*size, dtype=pair[0], device=backend) for _ in range(2))
    residual, grad_sum = (values(*size, dtype=pair[1], device=backend) for _ in range(2))
    given = norm.parameters(size[1], dtype=pair[0], device=backend)
    check_gradients(norm, x, residual, size[1:], given, (grad_output, grad_sum))


def check_gradients(
    norm: RowNorm,
    x: Tensor,
    residual: Tensor,
    normalized: Sequence[int],
    given: Sequence[Tensor | None],
    grads: tuple[Tensor, Tensor],
) -> None:
    """Output, sum, and the gradients of all that is there, against wide arithmetic."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, residual, *given)]
    inputs = [t for t in leaves if t is not None]
    output, total = getattr(normext, norm.name)(
        *leaves[:2], normalized, *leaves[2 : 4 if norm.centered else 3], eps=EPS
    )
    assert (output.dtype, total.dtype) == (x.dtype, residual.dtype)
    assert output.is_contiguous()
    assert torch.equal(total, (x + residual).to(residual.dtype))
    found = iter(torch.autograd.grad((output, total), inputs, grads))

    expected = norm.expected(total.detach(), normalized, *given, EPS, grads[0])
    assert_close(output.detach().to(total.dtype), widened(expected.output, x.dtype, total.dtype))
    for leaf in (x, residual):
        assert_close(next(found), plus(expected.grad_input, grads[1], leaf.dtype))
    for leaf, wanted in zip(given, (expected.grad_weight, expected.grad_bias), strict=True):
        if leaf is not None:
            assert_close(next(found), wanted)


def widened(expected: Expected, rounded: torch.dtype, held: torch.dtype) -> Expected:
    """What was rounded to one dtype, held in another."""
    return Expected(expected.value, expected.error + rounding(expected.value, rounded), held)


@add_norms
@pytest.mark.parametrize("scale", [1e30, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_sums_at_the_far_ends_of_the_range(backend: str, norm: RowNorm, dtype: torch.dtype, scale: float) -> None:
    x, residual = ((scale * values(3, 100, dtype=torch.float64)).to(dtype).to(backend) for _ in range(2))
    output, total = add(norm, x, residual, None, None, eps=0.0)
    assert_close(output, norm.expected(total, [100], eps=0.0).output)


@add_norms
@pairs
def test_either_output_may_go_unused(backend: str, norm: RowNorm, pair: tuple[torch.dtype, torch.dtype]) -> None:
    x = values(4, 20, dtype=pair[0], device=backend).requires_grad_()
    residual = values(4, 20, dtype=pair[1], device=backend).requires_grad_()
    output, total = add(norm, x, residual, None, None)
    found = torch.autograd.grad(total, (x, residual), torch.ones_like(total), retain_graph=True)
    assert [t.dtype for t in found] == list(pair)
    assert all(torch.equal(t, torch.ones_like(t)) for t in found)
    grad_output, zeros = torch.randn_like(output), torch.zeros_like(total)
    alone = torch.autograd.grad(output, (x, residual), grad_output, retain_graph=True)
    both = torch.autograd.grad((output, total), (x, residual), (grad_output, zeros))
    assert [t.dtype for t in alone] == list(pair)
    for a, b in zip(alone, both, strict=True):
        assert_same(a, b)


@add_norms
def test_each_leaf_has_a_gradient_of_its_own(device: str, norm: RowNorm) -> None:
    """One tensor is the gradient of both, and accumulates in two places."""
    x, residual = (values(4, 20, device=device).requires_grad_() for _ in range(2))
    for _ in range(2):
        for t in add(norm, x, residual, None, None):
            t.square().sum().backward(retain_graph=True)
    assert torch.equal(x.grad, residual.grad)
    assert x.grad.data_ptr() != residual.grad.data_ptr()
    before = residual.grad.clone()
    x.grad.zero_()
    assert torch.equal(residual.grad, before)


@add_norms
def test_input_and_residual_may_be_one_tensor(device: str, norm: RowNorm) -> None:
    x = values(4, 20, dtype=torch.float64, device=device).requires_grad_()
    twice, once = (torch.autograd.grad(apart(norm, t, None, None).sin().sum(), x)[0] for t in (x + x, 2 * x))
    torch.testing.assert_close(once, twice)
    found = torch.autograd.grad(add(norm, x, x, None, None)[0].sin().sum(), x)[0]
    torch.testing.assert_close(found, once)


@add_norms
def test_changing_the_sum_before_backward_is_noticed(device: str, norm: RowNorm) -> None:
    x = values(4, 20, device=device).requires_grad_()
    output, total = add(norm, x, x, None, None)
    total.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@add_norms
def test_strided_rows_are_read_in_place(backend: str, norm: RowNorm) -> None:
    """Both of them, in strides of their own, and both gradients."""
    wide = values(4, 8, 3, 40, device=backend)
    x, residual = wide[:, :6, 1, :33], wide[:, 2:, 2, 5:38]
    grad_output = values(4, 6, 50, device=backend)[..., 3:36]
    parameters = norm.parameters(33, device=backend)

    def run(x: Tensor, residual: Tensor, grad_output: Tensor) -> list[Tensor]:
        inputs = [t.requires_grad_() for t in (x.detach(), residual.detach())]
        outputs = add(norm, *inputs, *parameters)
        return [*outputs, *torch.autograd.grad(outputs[0], inputs, grad_output)]

    with copies() as seen:
        found = run(x, residual, grad_output)
    assert not seen
    wanted = run(x.contiguous(), residual.contiguous(), grad_output.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@add_norms
def test_zero_size(device: str, norm: RowNorm) -> None:
    for shape in ((0, 5), (3, 0)):
        x = torch.empty(shape, device=device, requires_grad=True)
        weight = torch.ones(shape[1], device=device, requires_grad=True)
        output, total = add(norm, x, x, weight, None)
        assert output.shape == total.shape == shape
        for grad in torch.autograd.grad(output.sum() + total.sum(), (x, weight)):
            assert torch.equal(grad, torch.zeros_like(grad))


X = torch.ones(2, 3, 4)
ERRORS = {
    "shape": (X[:1], r"Expected residual to be of same shape as input, but got residual of shape \[1, 3, 4\]"),
    "dimensions": (X[0], r"Expected residual to be of same shape as input.*input of shape \[2, 3, 4\]"),
    "wider": (X.double(), "expected residual of Float for an input of Float, but got residual of Double"),
    "half": (X.half(), "expected residual of Float for an input of Float, but got residual of Half"),
}
CALLS = {
    "eager": lambda f: f,
    "func": lambda f: lambda r: torch.func.vmap(lambda x: f(r) + x)(torch.zeros(1)),
    "compiled": lambda f: torch.compile(f, backend="eager"),
}


@add_norms
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize(("residual", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_of_the_residual(norm: RowNorm, residual: Tensor, message: str, call) -> None:
    torch.compiler.reset()
    with pytest.raises(RuntimeError, match=message):
        call(lambda r: getattr(normext, norm.name)(X, r, [4])[0])(residual)


MODULES = {"AddLayerNorm": "LayerNorm", "AddRMSNorm": "RMSNorm"}


@pytest.mark.parametrize(("name", "alone"), MODULES.items())
def test_modules(device: str, name: str, alone: str) -> None:
    module, norm = (getattr(normext, n)(20, 1e-3, weight_offset=0.5, device=device) for n in (name, alone))
    for parameter in norm.parameters():
        torch.nn.init.uniform_(parameter)
    module.load_state_dict(norm.state_dict())
    x, residual = values(4, 20, device=device), values(4, 20, device=device)
    output, total = module(x, residual)
    assert torch.equal(total, x + residual)
    assert torch.equal(output, norm(total))
    assert torch.equal(torch.jit.script(module)(x, residual)[0], output)
    assert torch.equal(copy.deepcopy(module)(x, residual)[0], output)
    assert repr(module) == repr(norm).replace(alone, name)

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = module

        def forward(self, x: Tensor, residual: Tensor) -> Tensor:
            y, total = self.norm(x, residual)
            return y + total

    graph = torch.fx.Tracer().trace(Block())
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["norm"]
    assert torch.equal(torch.fx.GraphModule(Block(), graph)(x, residual), output + total)
