"""What adaptive norms have of their own: a scale and a shift for some rows each. The rest is in test_row_norms.py."""

from collections.abc import Sequence

import pytest
import torch
from inputs import DTYPE_PAIRS, assert_same, copies, dtype_name, values
from norms import ADAPTIVE_NORMS, EPS, RowNorm, norms
from reference import adaptive_norm, assert_close
from torch import Tensor

import normext

adaptive_norms = norms(ADAPTIVE_NORMS)
pairs = pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=lambda pair: "-".join(map(dtype_name, pair)))

# Shapes of the input, of the scale (and shift), and of those aligned to the input's.
SHAPES = {
    "per sample": ((3, 5, 33), (3, 33), (3, 1, 33)),
    "per sample, of long rows": ((2, 3, 9000), (2, 1, 9000), (2, 1, 9000)),
    "per sample, many rows": ((2, 70, 96), (2, 96), (2, 1, 96)),
    "per token": ((3, 5, 33), (3, 5, 33), (3, 5, 33)),
    "per token of many heads": ((2, 3, 7, 20), (2, 3, 20), (2, 3, 1, 20)),
    "shared": ((3, 5, 33), (33,), (1, 1, 33)),
    "one sample": ((1, 5, 33), (1, 33), (1, 1, 33)),
    "a matrix": ((6, 33), (6, 33), (6, 33)),
    "a row": ((33,), (33,), (33,)),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def adaptive(norm: RowNorm, x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """The function."""
    return getattr(normext, norm.name)(x, scale, shift, EPS)


def by_hand(norm: RowNorm, x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """The same in torch's operators, of parameters that broadcast."""
    d = x - x.mean(-1, keepdim=True) if norm.centered else x
    y = d * (d.square().mean(-1, keepdim=True) + EPS).rsqrt() * (1 + scale)
    return y if shift is None else y + shift


@adaptive_norms
@shapes
@pytest.mark.parametrize("pair", [DTYPE_PAIRS[1], DTYPE_PAIRS[4]], ids=str)
def test_shapes(backend: str, norm: RowNorm, pair: tuple, shape: tuple) -> None:
    check(backend, norm, pair, shape, has_shift=True)


@adaptive_norms
@pairs
@pytest.mark.parametrize("has_shift", [True, False], ids=["shift", "no shift"])
def test_dtypes(backend: str, norm: RowNorm, pair: tuple, has_shift: bool) -> None:
    check(backend, norm, pair, SHAPES["per sample"], has_shift or norm.centered)


def check(backend: str, norm: RowNorm, pair: tuple, shape: tuple, has_shift: bool) -> None:
    """All of it against wide arithmetic, of random numbers."""
    size, given, aligned = shape
    x, grad_output = (values(*size, dtype=pair[0], device=backend) for _ in range(2))
    scale = values(*given, dtype=pair[1], device=backend)
    shift = values(*given, dtype=pair[1], device=backend) if has_shift else None
    check_gradients(norm, x, scale, shift, aligned, grad_output)


def check_gradients(
    norm: RowNorm, x: Tensor, scale: Tensor, shift: Tensor | None, aligned: Sequence[int], grad_output: Tensor
) -> None:
    """The output, and the gradient of all that is there. ``aligned`` is scale's shape in as many dimensions as x's."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, scale, shift)]
    output = adaptive(norm, *leaves)
    assert output.is_contiguous()
    found = torch.autograd.grad(output, [t for t in leaves if t is not None], grad_output)
    view = [None if t is None else t.reshape(aligned) for t in (scale, shift)]
    expected = adaptive_norm(x, *view, EPS, grad_output, norm.centered)
    assert_close(output.detach(), expected.output)
    assert_close(found[0], expected.grad_input)
    for gradient, wanted in zip(found[1:], (expected.grad_weight, expected.grad_bias), strict=False):
        assert gradient.shape == scale.shape
        assert_close(gradient.reshape(wanted.value.shape), wanted)


@adaptive_norms
def test_shift_of_each_element_has_the_gradient_of_the_output(backend: str, norm: RowNorm) -> None:
    """It is that tensor: nothing is added up, and nothing copied. A shift of another dtype has a copy."""
    x, scale, grad_output = (values(3, 5, 33, dtype=torch.bfloat16, device=backend) for _ in range(3))
    for dtype in (torch.bfloat16, torch.float32):
        scale, shift = scale.to(dtype), values(3, 5, 33, dtype=dtype, device=backend).requires_grad_()
        (found,) = torch.autograd.grad(adaptive(norm, x, scale, shift), shift, grad_output)
        assert (found.data_ptr() == grad_output.data_ptr()) == (dtype == grad_output.dtype)
        assert_same(found, grad_output.to(dtype))


# scale and shift of an input of [3, 5, 20], each with what it is to broadcast as
PATTERNS = {
    "along the tokens": ((1, 5, 20), (1, 5, 20)),
    "along the tokens, and each": ((1, 5, 20), (3, 5, 20)),
    "per sample and per token": ((3, 1, 20), (3, 5, 20)),
    "per token and shared": ((3, 5, 20), (1, 1, 20)),
    "per sample and shared": ((3, 1, 20), (1, 1, 20)),
}


@adaptive_norms
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())
def test_scale_and_shift_of_different_shapes(device: str, norm: RowNorm, pattern: tuple) -> None:
    inputs = [values(*s, dtype=torch.float64, device=device).requires_grad_() for s in ((3, 5, 20), *pattern)]
    output, expected = adaptive(norm, *inputs), by_hand(norm, *inputs)
    torch.testing.assert_close(output, expected)
    found, wanted = (torch.autograd.grad(t.sin().sum(), inputs) for t in (output, expected))
    torch.testing.assert_close(found, wanted)


@adaptive_norms
@pytest.mark.parametrize("tokens", [(), (5,)], ids=["per sample", "per token"])
def test_chunks_of_a_modulation_are_read_in_place(backend: str, norm: RowNorm, tokens: tuple) -> None:
    modulation = values(3, *tokens, 6 * 20, device=backend)
    x, grad_output = (values(3, 5, 30, device=backend)[..., 4:24] for _ in range(2))

    def run(x: Tensor, scale: Tensor, shift: Tensor, grad_output: Tensor) -> list[Tensor]:
        inputs = [t.detach().requires_grad_() for t in (x, scale, shift)]
        output = adaptive(norm, *inputs)
        return [output, *torch.autograd.grad(output, inputs, grad_output)]

    shift, scale, *_ = modulation.chunk(6, dim=-1)
    with copies() as seen:
        found = run(x, scale, shift, grad_output)
    assert not seen
    wanted = run(*(t.contiguous() for t in (x, scale, shift, grad_output)))
    for a, b in zip(found, wanted, strict=True):
        assert_same(a, b)


@adaptive_norms
def test_zero_size(device: str, norm: RowNorm) -> None:
    for shape, given in (((0, 4, 5), (0, 5)), ((2, 0, 5), (2, 5)), ((2, 4, 0), (2, 0)), ((2, 0, 5), (2, 0, 5))):
        x, scale = (torch.ones(s, device=device, requires_grad=True) for s in (shape, given))
        output = adaptive(norm, x, scale, scale)
        assert output.shape == shape
        for grad in torch.autograd.grad(output.sum(), (x, scale)):
            assert torch.equal(grad, torch.zeros_like(grad))


X = torch.ones(2, 3, 4)
ERRORS = {
    "last": (X, X[:, 0, :3], r"Expected scale to be of input's size in the last dimension"),
    "aligned at the right": (X, X[0], r"got scale of shape \[3, 4\] and input of shape \[2, 3, 4\]"),
    "more dimensions": (X, X[None], "Expected scale to be"),
    "no dimension": (X, torch.tensor(1.0), "Expected scale to be"),
    "wider": (X, X[:, 0].double(), "mixed dtype"),
    "no input": (torch.tensor(1.0), torch.ones(1), "at least one dimension"),
    "device": (X, X[:, 0].to("meta"), "Expected all tensors to be on the same device"),
}


@adaptive_norms
@pytest.mark.parametrize("transform", [False, True], ids=["eager", "func"])
@pytest.mark.parametrize(("x", "scale", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(norm: RowNorm, x: Tensor, scale: Tensor, message: str, transform: bool) -> None:
    def call(zero: Tensor) -> Tensor:
        return adaptive(norm, x, scale, torch.ones(4)) + zero

    with pytest.raises(RuntimeError, match=message):
        torch.func.vmap(call)(torch.zeros(1)) if transform else call(torch.zeros(()))


@adaptive_norms
def test_errors_compiled_and_integers(norm: RowNorm) -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda x, s: adaptive(norm, x, s, s), backend="eager")
    with pytest.raises(RuntimeError, match="Expected scale to be"):
        compiled(X, X[0])
    with pytest.raises(NotImplementedError, match="not implemented for 'Int'"):
        adaptive(norm, X.int(), X[:, 0].int(), X[:, 0].int())
