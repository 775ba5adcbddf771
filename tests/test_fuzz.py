"""Any shape, strides, storage offset and dtypes, against the float64 reference."""

import math
from dataclasses import dataclass

import pytest
import reference
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from inputs import DTYPE_PAIRS, gradients, leaves, parameters, running, values
from norms import ADAPTIVE_NORMS, ADD_NORMS, RowNorm, norms, row_norms
from reference import assert_close
from test_adaptive_norm import check_gradients as check_adaptive_norm
from test_add_norm import check_gradients as check_add_norm
from torch import Tensor

import normext

# The same examples every time: a failure in CI is a failure at home.
fuzz = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
sizes = st.one_of(st.integers(0, 3), st.integers(4, 9), st.sampled_from([16, 17, 33]))
pairs = st.sampled_from(DTYPE_PAIRS)
affines = st.tuples(st.booleans(), st.booleans())


def shapes(dims: int) -> st.SearchStrategy[list[int]]:
    """Up to five dimensions, few elements: what goes wrong goes wrong in small tensors."""
    return st.lists(sizes, min_size=dims, max_size=5).filter(lambda shape: math.prod(shape) < 2000)


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in its storage."""

    order: tuple[int, ...]  # the dimensions, from outermost in memory to innermost
    steps: tuple[int, ...]  # 2: every other element of a dimension
    offset: int
    expanded: tuple[bool, ...]  # stride 0

    def __call__(self, x: Tensor) -> Tensor:
        for dim, expand in enumerate(self.expanded):
            if expand and x.shape[dim]:
                x = x.narrow(dim, 0, 1).expand_as(x)
        size = [n * step for n, step in zip(x.shape, self.steps, strict=True)]
        strides, stride = [0] * x.dim(), 1
        for dim in reversed(self.order):
            strides[dim] = 0 if self.expanded[dim] else stride * self.steps[dim]
            stride *= 1 if self.expanded[dim] else max(size[dim], 1)
        # What lies between the elements is NaN: reading it shows.
        storage = torch.full((self.offset + stride,), float("nan"), dtype=x.dtype, device=x.device)
        result = storage.as_strided(x.shape, strides, self.offset)
        for dim, expand in enumerate(self.expanded):
            if expand and x.shape[dim]:
                x = x.narrow(dim, 0, 1)
        result.as_strided(x.shape, strides, self.offset).copy_(x)
        return result


@st.composite
def layouts(draw: st.DrawFn, dims: int) -> Layout:
    """Contiguous as often as anything else."""
    if draw(st.booleans()):
        return Layout(tuple(range(dims)), (1,) * dims, draw(st.integers(0, 3)), (False,) * dims)
    each = st.tuples(*[st.sampled_from([1, 1, 2])] * dims)
    expanded = st.tuples(*[st.sampled_from([False, False, False, True])] * dims)
    return Layout(tuple(draw(st.permutations(range(dims)))), draw(each), draw(st.integers(0, 3)), draw(expanded))


@row_norms
@fuzz
@given(data=st.data(), pair=pairs, shape=shapes(1), affine=affines, weight_offset=st.sampled_from([0.0, 1.0]))
def test_row_norm(
    backend: str,
    norm: RowNorm,
    data: st.DataObject,
    pair: tuple,
    shape: list[int],
    affine: tuple,
    weight_offset: float,
) -> None:
    torch.manual_seed(0)
    normalized = shape[-data.draw(st.integers(1, len(shape)), "normalized dimensions") :]
    assume(0 not in normalized)  # its statistics are no numbers: test_zero_size
    x, grad_output = (
        data.draw(layouts(len(shape)), name)(values(*shape, dtype=pair[0], device=backend))
        for name in ("input", "grad_output")
    )
    weight, bias = norm.parameters(*normalized, affine=affine, dtype=pair[1], device=backend)
    expected = norm.expected(x, normalized, weight, bias, grad_output=grad_output, weight_offset=weight_offset)
    inputs = leaves(x, weight, bias)
    output = norm(inputs[0], normalized, *inputs[1:], weight_offset=weight_offset)
    assert output.is_contiguous()
    check(output, inputs, grad_output, expected)


@norms(ADD_NORMS)
@settings(fuzz, max_examples=40)
@given(data=st.data(), pair=pairs, shape=shapes(1), affine=affines)
def test_add_norm(
    backend: str, norm: RowNorm, data: st.DataObject, pair: tuple, shape: list[int], affine: tuple
) -> None:
    """The pair is of the input and the residual."""
    torch.manual_seed(0)
    normalized = shape[-data.draw(st.integers(1, len(shape)), "normalized dimensions") :]
    assume(0 not in shape)
    x, grad_output, residual, grad_sum = (
        data.draw(layouts(len(shape)), name)(values(*shape, dtype=dtype, device=backend))
        for name, dtype in zip(
            ("input", "grad_output", "residual", "grad_sum"), (pair[0], pair[0], pair[1], pair[1]), strict=True
        )
    )
    given = norm.parameters(*normalized, affine=affine, dtype=pair[0], device=backend)
    check_add_norm(norm, x, residual, normalized, given, (grad_output, grad_sum))


@norms(ADAPTIVE_NORMS)
@settings(fuzz, max_examples=40)
@given(data=st.data(), pair=pairs, shape=shapes(1), has_shift=st.booleans())
def test_adaptive_norm(
    backend: str, norm: RowNorm, data: st.DataObject, pair: tuple, shape: list[int], has_shift: bool
) -> None:
    """Scale and shift along some of the first dimensions: none, a sample's, a token's."""
    torch.manual_seed(0)
    assume(0 not in shape)
    leading = data.draw(st.integers(0, len(shape) - 1), "dimensions of scale before the last")
    along = data.draw(st.tuples(*[st.sampled_from([True, True, False])] * leading), "whether it varies along them")
    given = [size if varies else 1 for size, varies in zip(shape, along, strict=False)] + shape[-1:]
    x, grad_output = (
        data.draw(layouts(len(shape)), name)(values(*shape, dtype=pair[0], device=backend))
        for name in ("input", "grad_output")
    )
    scale, shift = (
        data.draw(layouts(len(given)), name)(values(*given, dtype=pair[1], device=backend))
        for name in ("scale", "shift")
    )
    aligned = given[:-1] + [1] * (len(shape) - len(given)) + given[-1:]
    check_adaptive_norm(norm, x, scale, shift if has_shift or norm.centered else None, aligned, grad_output)


@fuzz
@given(data=st.data(), pair=pairs, shape=shapes(2), affine=affines)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_batch_norm(
    backend: str, training: bool, data: st.DataObject, pair: tuple, shape: list[int], affine: tuple
) -> None:
    torch.manual_seed(0)
    assume(0 not in shape and shape[0] * math.prod(shape[2:]) > 1)  # test_zero_size; one value per channel is an error
    x, grad_output = (
        data.draw(layouts(len(shape)), name)(values(*shape, dtype=pair[0], device=backend))
        for name in ("input", "grad_output")
    )
    weight, bias = parameters(affine, shape[1], dtype=pair[1], device=backend)
    stats = (None, None) if training else running(shape[1], dtype=pair[1], device=backend)
    expected = reference.batch_norm(x, *stats, weight, bias, grad_output=grad_output)
    inputs = leaves(x, weight, bias)
    output = normext.batch_norm(inputs[0], *stats, *inputs[1:], training=training)
    check(output, inputs, grad_output, expected)


@fuzz
@given(data=st.data(), pair=pairs, shape=shapes(2), affine=affines)
def test_group_norm(backend: str, data: st.DataObject, pair: tuple, shape: list[int], affine: tuple) -> None:
    torch.manual_seed(0)
    assume(0 not in shape)
    groups = data.draw(st.sampled_from([n for n in range(1, shape[1] + 1) if shape[1] % n == 0]), "groups")
    assume(math.prod(shape) > groups)  # one value per group, of one sample, is an error
    x, grad_output = (
        data.draw(layouts(len(shape)), name)(values(*shape, dtype=pair[0], device=backend))
        for name in ("input", "grad_output")
    )
    weight, bias = parameters(affine, shape[1], dtype=pair[1], device=backend)
    expected = reference.group_norm(x, groups, weight, bias, grad_output=grad_output)
    inputs = leaves(x, weight, bias)
    check(normext.group_norm(inputs[0], groups, *inputs[1:]), inputs, grad_output, expected)


def check(output: Tensor, inputs: list[Tensor | None], grad_output: Tensor, expected: reference.Norm) -> None:
    """The output, and the gradient of each input that is there."""
    assert_close(output, expected.output)
    found = gradients(output, inputs, grad_output)
    for grad, wanted in zip(found, [expected.grad_input, expected.grad_weight, expected.grad_bias], strict=True):
        if grad is not None:
            assert_close(grad, wanted)
