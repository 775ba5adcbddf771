"""The row norms' kernels, every implementation of them, against the float64 reference: what holds for all of them."""

import pytest
import torch
from inputs import DTYPE_PAIRS, DTYPES, HALF, dtype_name, gradients, leaves, off_by, values
from norms import EPS, RowNorm, affine_row_norms, every_row_norm, row_norms
from reference import STATISTICS_DTYPE, assert_close, assert_same_special_values
from torch import Tensor

import normext

ops = torch.ops.normext
NAN, INF = float("nan"), float("inf")

# Around every vector width (4 to 32 elements), and one element beyond it: the scalar tail.
SHORT = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 64, 100, 1000]
# One row, an odd number of them, more than any block of rows: a remainder after each.
ROWS = [1, 2, 3, 5, 64]
# Around the powers of two where blocking changes; rows longer than L1 (20000 floats), than L2 (150000).
LONG = [4095, 4096, 4097, 8191, 8192, 8193, 20000, 150000]
SIZES = [(rows, columns) for columns in SHORT for rows in ROWS]
SIZES += [(rows, columns) for columns in LONG for rows in (1, 3)]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))


def check_forward(
    norm: RowNorm,
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = EPS,
    weight_offset: float = 0.0,
) -> None:
    """Output and statistics, over the last dimension."""
    arguments = x, x.shape[-1:], weight, bias, eps
    expected = norm.expected(*arguments, weight_offset=weight_offset)
    output, mean, rstd = norm.forward(*arguments, weight_offset)
    assert_close(output, expected.output)
    if mean is not None:
        assert_close(mean, expected.mean)
    assert_close(rstd, expected.rstd)


def check_backward(
    norm: RowNorm,
    x: Tensor,
    grad_output: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = EPS,
    weight_offset: float = 0.0,
) -> None:
    """All gradients, over the last dimension."""
    expected = norm.expected(x, x.shape[-1:], weight, bias, eps, grad_output, weight_offset)
    inputs = leaves(x, weight, bias)
    output = norm(inputs[0], x.shape[-1:], *inputs[1:], eps, weight_offset)
    grad_input, grad_weight, grad_bias = gradients(output, inputs, grad_output)
    assert_close(grad_input, expected.grad_input)
    if weight is not None:
        assert_close(grad_weight, expected.grad_weight)
    if bias is not None:
        assert_close(grad_bias, expected.grad_bias)


# Sizes, dtypes, parameters


@row_norms
@sizes
@dtypes
def test_forward(backend: str, norm: RowNorm, dtype: torch.dtype, size: tuple[int, int]) -> None:
    weight, bias = norm.parameters(size[1], dtype=dtype, device=backend)
    check_forward(norm, values(*size, dtype=dtype, device=backend), weight, bias)


@row_norms
@sizes
@dtypes
def test_backward(backend: str, norm: RowNorm, dtype: torch.dtype, size: tuple[int, int]) -> None:
    weight, bias = norm.parameters(size[1], dtype=dtype, device=backend)
    x, grad_output = (values(*size, dtype=dtype, device=backend) for _ in range(2))
    check_backward(norm, x, grad_output, weight, bias)


@affine_row_norms
@pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=lambda pair: "-".join(map(dtype_name, pair)))
def test_parameters(
    backend: str, norm: RowNorm, pair: tuple[torch.dtype, torch.dtype], affine: tuple[bool, bool]
) -> None:
    weight, bias = norm.parameters(
        37, affine=affine, dtype=pair[1], device=backend
    )  # 37: a tail after every vector width
    x, grad_output = (values(6, 37, dtype=pair[0], device=backend) for _ in range(2))
    check_forward(norm, x, weight, bias)
    check_backward(norm, x, grad_output, weight, bias)


@every_row_norm
@pytest.mark.parametrize("size", [(64, 1000), (4097, 33), (3, 150000)], ids=lambda size: "x".join(map(str, size)))
def test_threads(backend: str, norm: RowNorm, threads: int, size: tuple[int, int]) -> None:
    weight, bias = norm.parameters(size[1], device=backend)
    x, grad_output = (values(*size, device=backend) for _ in range(2))
    check_forward(norm, x, weight, bias)
    check_backward(norm, x, grad_output, weight, bias)


@row_norms
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-3, 0.5])
def test_eps(backend: str, norm: RowNorm, eps: float) -> None:
    x = 1e-2 * values(5, 33, device=backend)  # a variance that each of them outweighs or leaves alone
    check_forward(norm, x, eps=eps)
    check_backward(norm, x, torch.randn_like(x), eps=eps)


@row_norms
@dtypes
def test_statistics_are_those_of_the_arithmetic(backend: str, norm: RowNorm, dtype: torch.dtype) -> None:
    _, *statistics = norm.forward(values(2, 3, 4, 5, dtype=dtype, device=backend), [4, 5])
    for statistic in statistics if norm.centered else statistics[1:]:
        assert statistic.shape == (2, 3, 1, 1)
        assert statistic.dtype == STATISTICS_DTYPE[dtype]


@row_norms
@pytest.mark.parametrize("normalized", [1, 2, 3, 4])
def test_normalized_shape(backend: str, norm: RowNorm, normalized: int) -> None:
    x, grad_output = (values(2, 3, 4, 5, device=backend) for _ in range(2))
    shape = x.shape[-normalized:]
    inputs = leaves(x, *norm.parameters(*shape, device=backend))
    expected = norm.expected(x, shape, *inputs[1:], EPS, grad_output)
    results = [
        *norm.forward(x, shape, *inputs[1:]),
        *gradients(norm(inputs[0], shape, *inputs[1:]), inputs, grad_output),
    ]
    names = ["output", "mean", "rstd", "grad_input", "grad_weight", "grad_bias"]
    for actual, name in zip(results, names, strict=True):
        if actual is not None:
            assert_close(actual, getattr(expected, name))


# Layouts. torch's row norms return contiguous tensors whatever comes in, and so do its gradients.

LAYOUTS = {
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "permuted": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "every other": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "a slice of wider rows": lambda x: torch.nn.functional.pad(x, (1, 2))[..., 1:-2],
    "off by one": off_by,
    "flipped back": lambda x: x.flip(0).contiguous().flip(0),
    "expanded": lambda x: x[:1].expand_as(x),
    "one row, repeated": lambda x: x[:, :, :1].expand_as(x),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


@row_norms
@layouts
@dtypes
def test_layout_of_the_input(backend: str, norm: RowNorm, dtype: torch.dtype, layout) -> None:
    x = layout(values(4, 5, 17, dtype=dtype, device=backend))
    check_forward(norm, x, *norm.parameters(17, dtype=dtype, device=backend))
    assert norm.forward(x, [17])[0].is_contiguous()


@row_norms
@layouts
@dtypes
def test_layout_of_the_gradient(backend: str, norm: RowNorm, dtype: torch.dtype, layout) -> None:
    weight, bias = norm.parameters(17, dtype=dtype, device=backend)
    x, grad_output = (values(4, 5, 17, dtype=dtype, device=backend) for _ in range(2))
    check_backward(norm, x, layout(grad_output), weight, bias)
    check_backward(norm, layout(x), layout(grad_output), weight, bias)


@row_norms
def test_layout_of_the_parameters(backend: str, norm: RowNorm) -> None:
    weight, bias = (layout(values(17, 3, device=backend))[:, 0] for layout in (torch.clone, off_by))
    bias = bias if norm.centered else None
    x, grad_output = values(4, 17, device=backend), values(4, 17, device=backend)
    check_forward(norm, x, weight, bias)
    check_backward(norm, x, grad_output, weight, bias)


@row_norms
@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format], ids=str)
def test_memory_format_is_contiguous(backend: str, norm: RowNorm, format: torch.memory_format) -> None:
    (x,) = leaves(values(2, 3, 4, 5, device=backend).to(memory_format=format))
    output = norm(x, [4, 5])
    (grad_input,) = torch.autograd.grad(output, x, torch.randn_like(x))
    assert output.is_contiguous()
    assert grad_input.is_contiguous()


# Hard numbers: the mean and the variance are float64's, rounded. torch's kernels fail most of these.


@every_row_norm
@pytest.mark.parametrize("columns", [16, 1000, 8193])
@pytest.mark.parametrize("scale", [1e30, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_far_ends_of_the_range(backend: str, norm: RowNorm, dtype: torch.dtype, scale: float, columns: int) -> None:
    # 1e30 squared is beyond float32, 1e-30 squared below it: eps is 0 so that rstd is its inverse.
    x = (scale * values(3, columns, dtype=torch.float64)).to(dtype).to(backend)
    weight, bias = norm.parameters(columns, dtype=dtype, device=backend)
    check_forward(norm, x, weight, bias, eps=0.0)
    check_backward(norm, x, values(3, columns, dtype=dtype, device=backend), weight, bias, eps=0.0)


@row_norms
@pytest.mark.parametrize("columns", [16, 1000])
def test_largest_halves(backend: str, norm: RowNorm, columns: int) -> None:
    x = torch.full((2, columns), torch.finfo(torch.float16).max, dtype=torch.float16, device=backend)
    x[:, ::2] *= -1
    check_forward(norm, x)


@row_norms
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=dtype_name)
def test_one_far_value(backend: str, norm: RowNorm, dtype: torch.dtype) -> None:
    x = torch.randn(4, 1000, dtype=dtype, device=backend)
    for row, column in enumerate([0, 15, 500, 999]):  # at a vector's ends, in the middle, in the tail
        x[row, column] = 1e6
    check_forward(norm, x)
    check_backward(norm, x, torch.randn_like(x))


@row_norms
@pytest.mark.parametrize("dtype", HALF, ids=dtype_name)
def test_every_nan_stays_one(backend: str, norm: RowNorm, dtype: torch.dtype) -> None:
    """One with all bits set is the next thing to zero, if it is rounded like a number."""
    weight = torch.ones(96)
    weight.view(torch.int32)[5] = 0x7FFFFFFF
    output, _, _ = norm.forward(values(20, 96, dtype=dtype, device=backend), [96], weight.to(backend))
    assert output[:, 5].isnan().all()
    assert not output[:, 6:].isnan().any()


@row_norms
@pytest.mark.parametrize("columns", [7, 33])
@pytest.mark.parametrize("bad", [[NAN], [INF], [-INF], [INF, -INF]], ids=str)
@pytest.mark.parametrize("where", ["input", "grad_output", "weight", "bias"])
def test_nan_and_infinity_go_where_torch_lets_them(
    backend: str, norm: RowNorm, where: str, bad: list[float], columns: int
) -> None:
    tensors = {name: values(4, columns, device=backend) for name in ("input", "grad_output")}
    tensors["weight"], tensors["bias"] = norm.parameters(columns, device=backend)
    if tensors[where] is None:
        pytest.skip("this norm has none")
    for i, value in enumerate(bad):
        tensors[where][..., 3 + i].view(-1)[:1] = value  # in one row of the input: the others stay as they are
    results = []
    for library in (normext, torch.nn.functional):
        inputs = leaves(tensors["input"], tensors["weight"], tensors["bias"])
        output = getattr(library, norm.name)(
            inputs[0], [columns], *(inputs[1:] if norm.centered else inputs[1:2]), eps=EPS
        )
        results.append([output, *gradients(output, inputs, tensors["grad_output"])])
    assert_same_special_values(results[0][0], results[1][0])
    # In a derivative, whether inf - inf or inf * 0 comes first depends on how the terms are grouped; where, does not.
    for ours, theirs in zip(results[0][1:], results[1][1:], strict=True):
        assert ours is None or torch.equal(ours.isfinite(), theirs.isfinite())


# Edges


@row_norms
@pytest.mark.parametrize(
    ("shape", "normalized_shape"),
    [((0, 5), [5]), ((3, 0), [0]), ((0,), [0]), ((2, 0, 3), [0, 3]), ((2, 0, 3), [3]), ((0, 0), [0])],
    ids=str,
)
def test_zero_size(backend: str, norm: RowNorm, shape: tuple[int, ...], normalized_shape: list[int]) -> None:
    ours = [
        result for result in norm.forward(torch.randn(shape, device=backend), normalized_shape) if result is not None
    ]
    if norm.centered:
        theirs = torch.native_layer_norm(torch.randn(shape), normalized_shape, None, None, EPS)
    else:  # torch's fused one is CUDA's alone: rows of no elements have a mean square of 0 / 0
        rows = [*shape[: -len(normalized_shape)], *[1] * len(normalized_shape)]
        theirs = torch.empty(shape), torch.full(rows, NAN)
    for actual, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual.cpu(), wanted, equal_nan=True)

    inputs = leaves(torch.randn(shape, device=backend), *norm.parameters(*normalized_shape, device=backend))
    output = norm(inputs[0], normalized_shape, *inputs[1:])
    for tensor, grad in zip(inputs, gradients(output, inputs, torch.ones_like(output)), strict=True):
        assert tensor is None or torch.equal(grad, torch.zeros_like(tensor))  # empty, or a sum of nothing


@every_row_norm
def test_one_dimension(backend: str, norm: RowNorm) -> None:
    check_forward(norm, values(33, device=backend))
    check_backward(norm, values(33, device=backend), values(33, device=backend))


@every_row_norm
def test_inputs_are_left_alone(backend: str, norm: RowNorm) -> None:
    tensors = [values(5, 33, device=backend), *norm.parameters(33, device=backend)]
    before = [None if t is None else t.clone() for t in tensors]
    inputs = leaves(*tensors)
    gradients(norm(inputs[0], [33], *inputs[1:]), inputs, before[0])
    assert all(a is None or torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


# The same bits


@every_row_norm
@pytest.mark.parametrize("size", [(64, 1000), (5000, 33), (3, 150000)], ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=dtype_name)
def test_repeats_to_the_bit(
    backend: str, norm: RowNorm, threads: int, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    inputs = leaves(values(*size, dtype=dtype, device=backend), *norm.parameters(size[1], dtype=dtype, device=backend))
    grad_output = values(*size, dtype=dtype, device=backend)

    def run() -> list[Tensor | None]:
        output = norm(inputs[0], size[1:], *inputs[1:])
        return [output, *gradients(output, inputs, grad_output)]

    first = run()
    for _ in range(3):
        assert all(a is None or torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@every_row_norm
@pytest.mark.parametrize("size", [(64, 17), (64, 100), (7, 4097), (3, 20000), (3, 150000)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=dtype_name)
def test_row_does_not_depend_on_its_batch(
    backend: str, norm: RowNorm, threads: int, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    x, grad_output = (values(*size, dtype=dtype, device=backend) for _ in range(2))
    weight, bias = norm.parameters(size[1], dtype=dtype, device=backend)

    def run(rows: slice) -> list[Tensor]:
        output, *statistics = norm.forward(x[rows], size[1:], weight, bias)
        arguments = grad_output[rows], x[rows], size[1:], statistics, weight
        grad_input, _, _ = norm.backward(*arguments, mask=[True, False, False])
        return [t for t in (output, *statistics, grad_input) if t is not None]

    together = run(slice(None))
    for rows in (slice(0, 1), slice(1, 2), slice(size[0] - 1, size[0]), slice(1, 3)):
        assert all(torch.equal(part, whole[rows]) for part, whole in zip(run(rows), together, strict=True))


# The operators and the function are the same computation.


@affine_row_norms
def test_function_and_operators_agree_to_the_bit(backend: str, norm: RowNorm, affine: tuple[bool, bool]) -> None:
    x, grad_output = (values(5, 33, device=backend) for _ in range(2))
    weight, bias = norm.parameters(33, affine=affine, device=backend)
    inputs = leaves(x, weight, bias)
    output, *statistics = norm.forward(x, [33], weight, bias)
    assert torch.equal(norm(x, [33], weight, bias), output)
    public = getattr(ops, norm.name)
    assert torch.equal(public(x, [33], *((weight, bias) if norm.centered else (weight,)), eps=EPS), output)
    by_autograd = gradients(norm(inputs[0], [33], *inputs[1:]), inputs, grad_output)
    mask = [True, *affine]
    by_operator = norm.backward(grad_output, x, [33], statistics, weight, mask)
    for asked, a, b in zip(mask, by_autograd, by_operator, strict=True):
        assert not asked or torch.equal(a, b)


@row_norms
@pytest.mark.parametrize("needed", [(i, w, b) for i in (0, 1) for w in (0, 1) for b in (0, 1)], ids=str)
def test_each_gradient_is_the_same_whichever_are_asked(
    backend: str, norm: RowNorm, needed: tuple[int, int, int]
) -> None:
    x, grad_output = (values(5, 33, device=backend) for _ in range(2))
    inputs = leaves(x, *norm.parameters(33, device=backend))
    every = gradients(norm(inputs[0], [33], *inputs[1:]), inputs, grad_output)
    there = [(t, bool(needs), grad) for t, needs, grad in zip(inputs, needed, every, strict=True) if t is not None]
    for tensor, needs, _ in there:
        tensor.requires_grad_(needs)
    output = norm(inputs[0], [33], *inputs[1:])
    assert output.requires_grad == any(needs for _, needs, _ in there)
    if output.requires_grad:
        output.backward(grad_output)
    for tensor, needs, grad in there:
        assert torch.equal(tensor.grad, grad) if needs else tensor.grad is None


@row_norms
@pytest.mark.parametrize("weight_offset", [1.0, -0.5])
@pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=lambda pair: "-".join(map(dtype_name, pair)))
@pytest.mark.parametrize("size", [(3, 17), (40, 96), (2, 5000)], ids=str)
def test_weight_offset(
    backend: str, norm: RowNorm, size: tuple[int, int], pair: tuple[torch.dtype, torch.dtype], weight_offset: float
) -> None:
    """It is added to the weight in the dtype that is computed in: nothing of a small weight is lost beside it."""
    x, grad_output = (values(*size, dtype=pair[0], device=backend) for _ in range(2))
    weight, bias = norm.parameters(size[1], dtype=pair[1], device=backend)
    weight = 2**-6 * weight
    check_forward(norm, x, weight, bias, weight_offset=weight_offset)
    check_backward(norm, x, grad_output, weight, bias, weight_offset=weight_offset)


@row_norms
def test_weight_offset_without_a_weight_changes_nothing(backend: str, norm: RowNorm) -> None:
    x = values(4, 33, device=backend)
    assert torch.equal(norm(x, [33], weight_offset=1.0), norm(x, [33]))


@row_norms
def test_module_calls_the_function(backend: str, norm: RowNorm) -> None:
    module = getattr(normext, {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm"}[norm.name])(
        (5, 7), eps=1e-3, device=backend
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(values(5, 7))
    x = values(2, 3, 5, 7, device=backend)
    assert torch.equal(module(x), norm(x, [5, 7], *module.parameters(), eps=1e-3))


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_modules_with_an_offset_start_at_one(name: str) -> None:
    module = getattr(normext, name)(33, weight_offset=1.0)
    assert repr(module).endswith("weight_offset=1.0)")
    assert torch.equal(module.weight, torch.zeros(33))
    x = values(4, 33)
    assert torch.equal(module(x), getattr(normext, name)(33)(x))
    assert torch.equal(torch.jit.script(module)(x), module(x))
