"""LayerNorm's kernels, every implementation of them, against the float64 reference."""

import pytest
import reference
import torch
from inputs import (
    AFFINE,
    DTYPE_PAIRS,
    DTYPES,
    HALF,
    affine_name,
    dtype_name,
    gradients,
    leaves,
    off_by,
    parameters,
    values,
)
from reference import STATISTICS_DTYPE, assert_close, assert_same_special_values
from torch import Tensor

import normext

ops = torch.ops.normext
EPS = 1e-5
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


def forward(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = EPS) -> list[Tensor]:
    """Output, mean and rstd over the last dimension."""
    return ops.layer_norm_forward(x, x.shape[-1:], weight, bias, eps)


def check_forward(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = EPS) -> None:
    """Output and both statistics, over the last dimension."""
    expected = reference.layer_norm(x, x.shape[-1:], weight, bias, eps)
    output, mean, rstd = forward(x, weight, bias, eps)
    assert_close(output, expected.output)
    assert_close(mean, expected.mean)
    assert_close(rstd, expected.rstd)


def check_backward(
    x: Tensor, grad_output: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = EPS
) -> None:
    """All three gradients, over the last dimension."""
    expected = reference.layer_norm(x, x.shape[-1:], weight, bias, eps, grad_output)
    inputs = leaves(x, weight, bias)
    output = normext.layer_norm(inputs[0], x.shape[-1:], *inputs[1:], eps)
    grad_input, grad_weight, grad_bias = gradients(output, inputs, grad_output)
    assert_close(grad_input, expected.grad_input)
    if weight is not None:
        assert_close(grad_weight, expected.grad_weight)
    if bias is not None:
        assert_close(grad_bias, expected.grad_bias)


# Sizes, dtypes, parameters


@sizes
@dtypes
def test_forward(backend: str, dtype: torch.dtype, size: tuple[int, int]) -> None:
    weight, bias = parameters((True, True), size[1], dtype=dtype, device=backend)
    check_forward(values(*size, dtype=dtype, device=backend), weight, bias)


@sizes
@dtypes
def test_backward(backend: str, dtype: torch.dtype, size: tuple[int, int]) -> None:
    weight, bias = parameters((True, True), size[1], dtype=dtype, device=backend)
    x, grad_output = (values(*size, dtype=dtype, device=backend) for _ in range(2))
    check_backward(x, grad_output, weight, bias)


@pytest.mark.parametrize("affine", AFFINE, ids=affine_name)
@pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=lambda pair: "-".join(map(dtype_name, pair)))
def test_parameters(backend: str, pair: tuple[torch.dtype, torch.dtype], affine: tuple[bool, bool]) -> None:
    weight, bias = parameters(affine, 37, dtype=pair[1], device=backend)  # 37: a tail after every vector width
    x, grad_output = (values(6, 37, dtype=pair[0], device=backend) for _ in range(2))
    check_forward(x, weight, bias)
    check_backward(x, grad_output, weight, bias)


@pytest.mark.parametrize("size", [(64, 1000), (4097, 33), (3, 150000)], ids=lambda size: "x".join(map(str, size)))
def test_threads(backend: str, threads: int, size: tuple[int, int]) -> None:
    weight, bias = parameters((True, True), size[1], device=backend)
    x, grad_output = (values(*size, device=backend) for _ in range(2))
    check_forward(x, weight, bias)
    check_backward(x, grad_output, weight, bias)


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-3, 0.5])
def test_eps(backend: str, eps: float) -> None:
    x = 1e-2 * values(5, 33, device=backend)  # a variance that each of them outweighs or leaves alone
    check_forward(x, eps=eps)
    check_backward(x, torch.randn_like(x), eps=eps)


@dtypes
def test_statistics_are_those_of_the_arithmetic(backend: str, dtype: torch.dtype) -> None:
    _, mean, rstd = ops.layer_norm_forward(values(2, 3, 4, 5, dtype=dtype, device=backend), [4, 5], None, None, EPS)
    assert mean.shape == rstd.shape == (2, 3, 1, 1)
    assert mean.dtype == rstd.dtype == STATISTICS_DTYPE[dtype]


@pytest.mark.parametrize("normalized", [1, 2, 3, 4])
def test_normalized_shape(backend: str, normalized: int) -> None:
    x, grad_output = (values(2, 3, 4, 5, device=backend) for _ in range(2))
    shape = x.shape[-normalized:]
    inputs = leaves(x, *parameters((True, True), *shape, device=backend))
    expected = reference.layer_norm(x, shape, *inputs[1:], EPS, grad_output)
    output, mean, rstd = ops.layer_norm_forward(x, shape, *inputs[1:], EPS)
    for actual, wanted in [(output, expected.output), (mean, expected.mean), (rstd, expected.rstd)]:
        assert_close(actual, wanted)
    found = gradients(normext.layer_norm(inputs[0], shape, *inputs[1:]), inputs, grad_output)
    for actual, wanted in zip(found, [expected.grad_input, expected.grad_weight, expected.grad_bias], strict=True):
        assert_close(actual, wanted)


# Layouts. torch's LayerNorm returns contiguous tensors whatever comes in, and so do its gradients.

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


@layouts
@dtypes
def test_layout_of_the_input(backend: str, dtype: torch.dtype, layout) -> None:
    x = layout(values(4, 5, 17, dtype=dtype, device=backend))
    check_forward(x, *parameters((True, True), 17, dtype=dtype, device=backend))
    assert forward(x)[0].is_contiguous()


@layouts
@dtypes
def test_layout_of_the_gradient(backend: str, dtype: torch.dtype, layout) -> None:
    weight, bias = parameters((True, True), 17, dtype=dtype, device=backend)
    x, grad_output = (values(4, 5, 17, dtype=dtype, device=backend) for _ in range(2))
    check_backward(x, layout(grad_output), weight, bias)
    check_backward(layout(x), layout(grad_output), weight, bias)


def test_layout_of_the_parameters(backend: str) -> None:
    weight, bias = (layout(values(17, 3, device=backend))[:, 0] for layout in (torch.clone, off_by))
    x, grad_output = values(4, 17, device=backend), values(4, 17, device=backend)
    check_forward(x, weight, bias)
    check_backward(x, grad_output, weight, bias)


@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format], ids=str)
def test_memory_format_is_contiguous(backend: str, format: torch.memory_format) -> None:
    (x,) = leaves(values(2, 3, 4, 5, device=backend).to(memory_format=format))
    output = normext.layer_norm(x, [4, 5])
    (grad_input,) = torch.autograd.grad(output, x, torch.randn_like(x))
    assert output.is_contiguous()
    assert grad_input.is_contiguous()


# Hard numbers: the mean and the variance are float64's, rounded. torch's kernels fail most of these.


@pytest.mark.parametrize("columns", [16, 100, 4097, 20000])
@pytest.mark.parametrize("ratio", [1e3, 1e6])
def test_mean_of_many_deviations(backend: str, ratio: float, columns: int) -> None:
    x = (ratio + torch.randn(3, columns, dtype=torch.float64)).float().to(backend)
    check_forward(x, *parameters((True, True), columns, device=backend))
    check_backward(x, torch.randn_like(x), *parameters((True, True), columns, device=backend))


@pytest.mark.parametrize("columns", [3, 16, 1000, 8193])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e6 + 0.1, -1e30, torch.finfo(torch.float32).max])
def test_constant_rows_are_their_bias(backend: str, value: float, columns: int) -> None:
    x = torch.full((2, columns), value, device=backend)
    weight, bias = parameters((True, True), columns, device=backend)
    output, mean, rstd = forward(x, weight, bias)
    assert torch.equal(mean, x[:, :1])
    assert torch.equal(output, bias.expand_as(x))
    torch.testing.assert_close(rstd, torch.full_like(rstd, EPS**-0.5), rtol=2**-22, atol=0)


@pytest.mark.parametrize("columns", [16, 1000, 8193])
@pytest.mark.parametrize("scale", [1e30, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_far_ends_of_the_range(backend: str, dtype: torch.dtype, scale: float, columns: int) -> None:
    # 1e30 squared is beyond float32, 1e-30 squared below it: eps is 0 so that rstd is its inverse.
    x = (scale * values(3, columns, dtype=torch.float64)).to(dtype).to(backend)
    weight, bias = parameters((True, True), columns, dtype=dtype, device=backend)
    check_forward(x, weight, bias, eps=0.0)
    check_backward(x, values(3, columns, dtype=dtype, device=backend), weight, bias, eps=0.0)


@pytest.mark.parametrize("columns", [16, 1000])
def test_largest_halves(backend: str, columns: int) -> None:
    x = torch.full((2, columns), torch.finfo(torch.float16).max, dtype=torch.float16, device=backend)
    x[:, ::2] *= -1
    check_forward(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=dtype_name)
def test_one_far_value(backend: str, dtype: torch.dtype) -> None:
    x = torch.randn(4, 1000, dtype=dtype, device=backend)
    for row, column in enumerate([0, 15, 500, 999]):  # at a vector's ends, in the middle, in the tail
        x[row, column] = 1e6
    check_forward(x)
    check_backward(x, torch.randn_like(x))


@pytest.mark.parametrize("ratio", [1, 3, 100])
@pytest.mark.parametrize("columns", [15, 64, 333, 1000, 5000])
@pytest.mark.parametrize("dtype", HALF, ids=dtype_name)
def test_half_mean_of_some_deviations(backend: str, dtype: torch.dtype, columns: int, ratio: float) -> None:
    """bfloat16 is summed about zero, and otherwise where the mean is too far from it."""
    x = torch.randn(20, columns)
    x[::3] += ratio
    weight, bias = parameters((True, True), columns, dtype=dtype, device=backend)
    check_forward(x.to(dtype).to(backend), weight, bias)
    check_backward(x.to(dtype).to(backend), torch.randn(20, columns).to(dtype).to(backend), weight, bias)


@pytest.mark.parametrize("small_bias", [False, True], ids=["weight", "bias"])
@pytest.mark.parametrize("small", [1e-39, 2.0**-126, 2.0**-100, 2.0**-31, 2.0**-30])
@pytest.mark.parametrize("rows", [20, 100])
def test_bfloat16_outputs_may_be_subnormal(backend: str, rows: int, small: float, small_bias: bool) -> None:
    weight, bias = torch.ones(96, device=backend), torch.zeros(96, device=backend)
    weight[3::7] = 0 if small_bias else small
    bias[3::7] = small if small_bias else 0
    x = values(rows, 96, dtype=torch.bfloat16, device=backend)
    output, mean, rstd = forward(x, weight, bias, EPS)
    expected = (x.double() - mean.double().view(-1, 1)) * rstd.double().view(-1, 1) * weight.double() + bias.double()
    spacing = 2.0**-133  # of bfloat16's subnormal numbers
    rtol = 0 if small < 2.0**-126 else 2.0**-8  # normal numbers are rounded relative to their size
    torch.testing.assert_close(output[:, 3::7].double(), expected[:, 3::7], rtol=rtol, atol=0.51 * spacing)


@pytest.mark.parametrize("dtype", HALF, ids=dtype_name)
def test_every_nan_stays_one(backend: str, dtype: torch.dtype) -> None:
    """One with all bits set is the next thing to zero, if it is rounded like a number."""
    weight = torch.ones(96)
    weight.view(torch.int32)[5] = 0x7FFFFFFF
    output, _, _ = forward(values(20, 96, dtype=dtype, device=backend), weight.to(backend), None, EPS)
    assert output[:, 5].isnan().all()
    assert not output[:, 6:].isnan().any()


@pytest.mark.parametrize("columns", [7, 33])
@pytest.mark.parametrize("bad", [[NAN], [INF], [-INF], [INF, -INF]], ids=str)
@pytest.mark.parametrize("where", ["input", "grad_output", "weight", "bias"])
def test_nan_and_infinity_go_where_torch_lets_them(backend: str, where: str, bad: list[float], columns: int) -> None:
    tensors = {name: values(4, columns, device=backend) for name in ("input", "grad_output")}
    tensors["weight"], tensors["bias"] = parameters((True, True), columns, device=backend)
    for i, value in enumerate(bad):
        tensors[where][..., 3 + i].view(-1)[:1] = value  # in one row of the input: the others stay as they are
    results = []
    for function in (normext.layer_norm, torch.nn.functional.layer_norm):
        inputs = leaves(tensors["input"], tensors["weight"], tensors["bias"])
        output = function(inputs[0], [columns], *inputs[1:])
        results.append([output, *gradients(output, inputs, tensors["grad_output"])])
    assert_same_special_values(results[0][0], results[1][0])
    # In a derivative, whether inf - inf or inf * 0 comes first depends on how the terms are grouped; where, does not.
    for ours, theirs in zip(results[0][1:], results[1][1:], strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())


# Edges


@pytest.mark.parametrize(
    ("shape", "normalized_shape"),
    [((0, 5), [5]), ((3, 0), [0]), ((0,), [0]), ((2, 0, 3), [0, 3]), ((2, 0, 3), [3]), ((0, 0), [0])],
    ids=str,
)
def test_zero_size(backend: str, shape: tuple[int, ...], normalized_shape: list[int]) -> None:
    theirs = torch.native_layer_norm(torch.randn(shape), normalized_shape, None, None, EPS)
    ours = ops.layer_norm_forward(torch.randn(shape, device=backend), normalized_shape, None, None, EPS)
    for actual, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual.cpu(), wanted, equal_nan=True)

    inputs = leaves(torch.randn(shape, device=backend), *parameters((True, True), *normalized_shape, device=backend))
    output = normext.layer_norm(inputs[0], normalized_shape, *inputs[1:])
    for tensor, grad in zip(inputs, gradients(output, inputs, torch.ones_like(output)), strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))  # empty, or a sum of nothing


@dtypes
def test_row_of_one_is_its_bias(backend: str, dtype: torch.dtype) -> None:
    parameter = parameters((True, True), 1, dtype=dtype, device=backend)
    inputs = leaves(values(5, 1, dtype=dtype, device=backend), *parameter)
    output = normext.layer_norm(inputs[0], [1], *inputs[1:])
    grad_input, grad_weight, _ = gradients(output, inputs, torch.ones_like(output))
    assert torch.equal(output, inputs[2].expand_as(output))
    assert torch.equal(grad_input, torch.zeros_like(grad_input))
    assert torch.equal(grad_weight, torch.zeros_like(grad_weight))


def test_one_dimension(backend: str) -> None:
    check_forward(values(33, device=backend))
    check_backward(values(33, device=backend), values(33, device=backend))


def test_inputs_are_left_alone(backend: str) -> None:
    tensors = [values(5, 33, device=backend), *parameters((True, True), 33, device=backend)]
    before = [t.clone() for t in tensors]
    inputs = leaves(*tensors)
    gradients(normext.layer_norm(inputs[0], [33], *inputs[1:]), inputs, before[0])
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


# The same bits


@pytest.mark.parametrize("size", [(64, 1000), (5000, 33), (3, 150000)], ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=dtype_name)
def test_repeats_to_the_bit(backend: str, threads: int, dtype: torch.dtype, size: tuple[int, int]) -> None:
    inputs = leaves(
        values(*size, dtype=dtype, device=backend), *parameters((True, True), size[1], dtype=dtype, device=backend)
    )
    grad_output = values(*size, dtype=dtype, device=backend)

    def run() -> list[Tensor | None]:
        output = normext.layer_norm(inputs[0], size[1:], *inputs[1:])
        return [output, *gradients(output, inputs, grad_output)]

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize("size", [(64, 17), (64, 100), (7, 4097), (3, 20000), (3, 150000)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=dtype_name)
def test_row_does_not_depend_on_its_batch(
    backend: str, threads: int, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    x, grad_output = (values(*size, dtype=dtype, device=backend) for _ in range(2))
    weight, bias = parameters((True, True), size[1], dtype=dtype, device=backend)

    def run(rows: slice) -> list[Tensor]:
        output, mean, rstd = forward(x[rows], weight, bias)
        grad_input, _, _ = ops.layer_norm_backward(
            grad_output[rows], x[rows], size[1:], mean, rstd, weight, EPS, [True, False, False]
        )
        return [output, mean, rstd, grad_input]

    together = run(slice(None))
    for rows in (slice(0, 1), slice(1, 2), slice(size[0] - 1, size[0]), slice(1, 3)):
        assert all(torch.equal(part, whole[rows]) for part, whole in zip(run(rows), together, strict=True))


@pytest.mark.parametrize("dtype", HALF, ids=dtype_name)
def test_row_does_not_depend_on_rows_far_from_zero(backend: str, dtype: torch.dtype) -> None:
    """Rows whose mean is near zero are computed otherwise, which shows in one element of some hundred thousand."""
    x, grad_output = (values(256, 4000, dtype=dtype, device=backend) for _ in range(2))
    weight, bias = parameters((True, True), 4000, dtype=dtype, device=backend)

    def near_rows(x: Tensor) -> list[Tensor]:
        output, mean, rstd = forward(x, weight, bias)
        grad_input, _, _ = ops.layer_norm_backward(
            grad_output, x, [4000], mean, rstd, weight, EPS, [True, False, False]
        )
        return [output[1::2], grad_input[1::2]]

    among_others = x.clone()
    among_others[::2] += 3
    assert all(torch.equal(a, b) for a, b in zip(near_rows(x), near_rows(among_others), strict=True))


# The operators and the function are the same computation.


@pytest.mark.parametrize("affine", AFFINE, ids=affine_name)
def test_function_and_operators_agree_to_the_bit(backend: str, affine: tuple[bool, bool]) -> None:
    x, grad_output = (values(5, 33, device=backend) for _ in range(2))
    weight, bias = parameters(affine, 33, device=backend)
    inputs = leaves(x, weight, bias)
    output, mean, rstd = forward(x, weight, bias)
    assert torch.equal(normext.layer_norm(x, [33], weight, bias), output)
    assert torch.equal(ops.layer_norm(x, [33], weight, bias), output)
    by_autograd = gradients(normext.layer_norm(inputs[0], [33], *inputs[1:]), inputs, grad_output)
    mask = [True, *affine]
    by_operator = ops.layer_norm_backward(grad_output, x, [33], mean, rstd, weight, EPS, mask)
    for asked, a, b in zip(mask, by_autograd, by_operator, strict=True):
        assert not asked or torch.equal(a, b)


@pytest.mark.parametrize("needed", [(i, w, b) for i in (0, 1) for w in (0, 1) for b in (0, 1)], ids=str)
def test_each_gradient_is_the_same_whichever_are_asked(backend: str, needed: tuple[int, int, int]) -> None:
    x, grad_output = (values(5, 33, device=backend) for _ in range(2))
    tensors = [x, *parameters((True, True), 33, device=backend)]
    inputs = leaves(*tensors)
    every = gradients(normext.layer_norm(inputs[0], [33], *inputs[1:]), inputs, grad_output)
    for tensor, needs in zip(inputs, needed, strict=True):
        tensor.requires_grad_(bool(needs))
    output = normext.layer_norm(inputs[0], [33], *inputs[1:])
    assert output.requires_grad == any(needed)
    if any(needed):
        output.backward(grad_output)
    for tensor, needs, grad in zip(inputs, needed, every, strict=True):
        assert torch.equal(tensor.grad, grad) if needs else tensor.grad is None


def test_module_calls_the_function(backend: str) -> None:
    module = normext.LayerNorm((5, 7), eps=1e-3, device=backend)
    with torch.no_grad():
        module.weight.copy_(values(5, 7))
        module.bias.copy_(values(5, 7))
    x = values(2, 3, 5, 7, device=backend)
    assert torch.equal(module(x), normext.layer_norm(x, [5, 7], module.weight, module.bias, 1e-3))
