"""BatchNorm's kernels, every implementation of them, against the float64 reference."""

import math
from collections.abc import Callable

import pytest
import reference
import torch
from inputs import (
    AFFINE,
    DTYPE_PAIRS,
    DTYPES,
    HALF,
    affine_name,
    channels_last,
    dtype_name,
    gradients,
    leaves,
    off_by,
    parameters,
    running,
    values,
)
from reference import STATISTICS_DTYPE, assert_close, assert_same_special_values, running_statistic, unbiased
from torch import Tensor

import normext

ops = torch.ops.normext
EPS = 1e-5
NAN, INF = float("nan"), float("inf")

# Fewer channels than a vector holds (several pixels share one), a vector and one more, several blocks of them.
CHANNELS = [1, 2, 3, 5, 16, 17, 64, 300]
# A plane shorter than a vector, ResNet-50's last and first (7x7, 56x56), and one that is no multiple of a vector.
PLANES = [(1, 1), (1, 2), (2, 2), (7, 7), (56, 56), (8, 125)]
# Few channels, each long enough for threads to share it; and [N, C] in the guise of 1x1 planes, long and not.
LARGE = [(1, 1, 300, 500), (4097, 3, 1, 1), (65, 33, 1, 1)]
SIZES = [
    (2, channels, *plane)
    for channels in CHANNELS
    for plane in PLANES
    if channels * math.prod(plane) < 60_000  # the suite's time
] + LARGE

LAYOUTS = {"contiguous": Tensor.contiguous, "channels_last": channels_last}

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
affines = pytest.mark.parametrize("affine", AFFINE, ids=affine_name)


def check_forward(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    stats: tuple[Tensor, Tensor] | None = None,
    eps: float = EPS,
) -> None:
    """Output and statistics; the running ones are used if given, the batch's otherwise."""
    expected = reference.batch_norm(x, *(stats or (None, None)), weight, bias, eps)
    training = stats is None
    output, mean, rstd, var = ops.batch_norm_forward(x, *(stats or (None, None)), weight, bias, training, eps)
    assert_close(output, expected.output)
    assert_close(mean, expected.mean)
    assert_close(rstd, expected.rstd)
    if training:
        assert_close(var, expected.var)


def check_backward(
    x: Tensor,
    grad_output: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    stats: tuple[Tensor, Tensor] | None = None,
    eps: float = EPS,
) -> None:
    """All three gradients."""
    expected = reference.batch_norm(x, *(stats or (None, None)), weight, bias, eps, grad_output)
    inputs = leaves(x, weight, bias)
    output = normext.batch_norm(inputs[0], *(stats or (None, None)), *inputs[1:], training=stats is None, eps=eps)
    grad_input, grad_weight, grad_bias = gradients(output, inputs, grad_output)
    assert_close(grad_input, expected.grad_input)
    if weight is not None:
        assert_close(grad_weight, expected.grad_weight)
    if bias is not None:
        assert_close(grad_bias, expected.grad_bias)


# Sizes, dtypes, layouts, parameters


@sizes
@layouts
@dtypes
def test_forward(backend: str, dtype: torch.dtype, layout, size: tuple[int, ...]) -> None:
    weight, bias = parameters((True, True), size[1], dtype=dtype, device=backend)
    check_forward(layout(values(*size, dtype=dtype, device=backend)), weight, bias)


@sizes
@layouts
@dtypes
def test_backward(backend: str, dtype: torch.dtype, layout, size: tuple[int, ...]) -> None:
    weight, bias = parameters((True, True), size[1], dtype=dtype, device=backend)
    x, grad_output = (layout(values(*size, dtype=dtype, device=backend)) for _ in range(2))
    check_backward(x, grad_output, weight, bias)


@pytest.mark.parametrize("size", [(2, 1, 1, 1), (2, 3, 7, 7), (3, 17, 2, 2), (1, 64, 1, 1), (2, 300, 3, 5)], ids=str)
@layouts
@dtypes
def test_evaluation(backend: str, dtype: torch.dtype, layout, size: tuple[int, ...]) -> None:
    x, grad_output = (layout(values(*size, dtype=dtype, device=backend)) for _ in range(2))
    weight, bias = parameters((True, True), size[1], dtype=dtype, device=backend)
    stats = running(size[1], dtype=dtype, device=backend)
    check_forward(x, weight, bias, stats)
    check_backward(x, grad_output, weight, bias, stats)


@modes
@affines
@layouts
@pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=lambda pair: "-".join(map(dtype_name, pair)))
def test_parameters(
    backend: str, pair: tuple[torch.dtype, torch.dtype], layout, affine: tuple[bool, bool], training: bool
) -> None:
    weight, bias = parameters(affine, 19, dtype=pair[1], device=backend)  # 19: a tail after every vector width
    stats = None if training else running(19, dtype=pair[1], device=backend)
    x, grad_output = (layout(values(3, 19, 3, 3, dtype=pair[0], device=backend)) for _ in range(2))
    check_forward(x, weight, bias, stats)
    check_backward(x, grad_output, weight, bias, stats)


# [N, C], [N, C, L] and [N, C, D, H, W], each also with its channels innermost or outermost in memory.
SHAPES = {
    "NC": lambda: values(33, 17),
    "CN": lambda: values(17, 33).t(),
    "NCL": lambda: values(5, 17, 9),
    "NLC": lambda: values(5, 9, 17).transpose(1, 2),
    "NCDHW": lambda: values(2, 17, 3, 4, 5),
    "NDHWC": lambda: channels_last(values(2, 17, 3, 4, 5)),
    "NC111": lambda: values(33, 17, 1, 1, 1),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@modes
def test_dimensions(backend: str, training: bool, shape) -> None:
    x, grad_output = shape().to(backend), shape().to(backend)
    weight, bias = parameters((True, True), 17, device=backend)
    stats = None if training else running(17, device=backend)
    check_forward(x, weight, bias, stats)
    check_backward(x, grad_output, weight, bias, stats)


@pytest.mark.parametrize("size", [(64, 100, 7, 7), (2, 3, 224, 224), (5000, 33, 1, 1)], ids=str)
@layouts
def test_threads(backend: str, threads: int, layout, size: tuple[int, ...]) -> None:
    weight, bias = parameters((True, True), size[1], device=backend)
    x, grad_output = (layout(values(*size, device=backend)) for _ in range(2))
    check_forward(x, weight, bias)
    check_backward(x, grad_output, weight, bias)


@modes
@pytest.mark.parametrize("eps", [1e-12, 1e-3, 0.5])
def test_eps(backend: str, eps: float, training: bool) -> None:
    x = 1e-2 * values(5, 3, 4, 4, device=backend)  # a variance that each of them outweighs or leaves alone
    stats = None if training else (torch.zeros(3, device=backend), torch.full((3,), 1e-4, device=backend))
    check_forward(x, stats=stats, eps=eps)
    check_backward(x, torch.randn_like(x), stats=stats, eps=eps)


@modes
@dtypes
def test_statistics_are_those_of_the_arithmetic(backend: str, dtype: torch.dtype, training: bool) -> None:
    stats = running(3, dtype=dtype, device=backend)
    x = values(2, 3, 4, dtype=dtype, device=backend)
    _, mean, rstd, var = ops.batch_norm_forward(x, *stats, None, None, training, EPS)
    assert mean.shape == rstd.shape == (3,)
    assert var.shape == ((3,) if training else (0,))
    assert mean.dtype == rstd.dtype == var.dtype == STATISTICS_DTYPE[dtype]


# Strides. torch keeps channels_last, and makes everything else contiguous.

STRIDES = {
    "permuted": lambda x: x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
    "batch and channels swapped": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every other": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "a slice of wider planes": lambda x: torch.nn.functional.pad(x, (1, 2))[..., 1:-2],
    "a slice of more channels": lambda x: channels_last(torch.cat([x, x], dim=1))[:, : x.shape[1]],
    "off by one": off_by,
    "channels_last, off by one": lambda x: off_by(channels_last(x)),
    "expanded planes": lambda x: x[..., :1, :1].expand_as(x),
    "expanded batch": lambda x: x[:1].expand_as(x),
}
strides = pytest.mark.parametrize("stride", STRIDES.values(), ids=STRIDES.keys())


@strides
@dtypes
@modes
def test_strides_of_the_input(backend: str, training: bool, dtype: torch.dtype, stride) -> None:
    x, grad_output = (values(3, 5, 4, 3, dtype=dtype, device=backend) for _ in range(2))
    stats = None if training else running(5, dtype=dtype, device=backend)
    weight, bias = parameters((True, True), 5, dtype=dtype, device=backend)
    check_forward(stride(x), weight, bias, stats)
    check_backward(stride(x), grad_output, weight, bias, stats)


@strides
@layouts
@modes
def test_strides_of_the_gradient(backend: str, training: bool, layout, stride) -> None:
    x, grad_output = (values(3, 5, 4, 3, device=backend) for _ in range(2))
    stats = None if training else running(5, device=backend)
    check_backward(layout(x), stride(grad_output), *parameters((True, True), 5, device=backend), stats)


@modes
def test_strides_of_the_parameters(backend: str, training: bool) -> None:
    weight, bias, mean, var = (0.5 + torch.rand(5, 4, device=backend)).unbind(1)
    x, grad_output = (values(3, 5, 4, 3, device=backend) for _ in range(2))
    stats = None if training else (mean, var)
    check_forward(x, weight, bias, stats)
    check_backward(x, grad_output, weight, bias, stats)


@pytest.mark.parametrize("stride", (STRIDES | LAYOUTS).values(), ids=(STRIDES | LAYOUTS).keys())
@pytest.mark.parametrize("size", [(3, 5, 4, 3), (3, 1, 4, 3), (3, 5, 1, 1), (1, 5, 4, 3)], ids=str)
@modes
def test_memory_format_is_that_of_torch(backend: str, training: bool, size: tuple[int, ...], stride) -> None:
    """That of torch on the CPU, on every device: on a GPU torch's own keeps any strides without gaps."""
    (x,) = leaves(stride(values(*size, device=backend)))
    output = normext.batch_norm(x, *running(size[1], device=backend), training=training)
    expected = torch.nn.functional.batch_norm(x.cpu(), *running(size[1]), training=training)
    (gradient,) = torch.autograd.grad(output, x, torch.randn(size, device=backend))
    for tensor in (output, gradient):  # torch's own gradient is contiguous for some channels_last batches of one
        for format in (torch.contiguous_format, torch.channels_last):
            assert tensor.is_contiguous(memory_format=format) == expected.is_contiguous(memory_format=format)


# Running statistics


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.5, 1.0, -0.5])
@pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=lambda pair: "-".join(map(dtype_name, pair)))
def test_running_statistics(backend: str, pair: tuple[torch.dtype, torch.dtype], momentum: float) -> None:
    x = values(4, 19, 3, 3, dtype=pair[0], device=backend)
    mean, var = running(19, dtype=pair[1], device=backend)
    batch = reference.batch_norm(x)
    expected_mean = running_statistic(mean, batch.mean, momentum)
    expected_var = running_statistic(var, unbiased(batch.var, 4 * 9), momentum)
    normext.batch_norm(x, mean, var, training=True, momentum=momentum)
    assert_close(mean, expected_mean)
    assert_close(var, expected_var)


@layouts
def test_running_statistics_may_be_strided(backend: str, layout) -> None:
    x = layout(values(4, 5, 3, 3, device=backend))
    buffers = torch.rand(5, 3, device=backend)
    copies = [buffers[:, 0].clone(), buffers[:, 1].clone()]
    beside = buffers[:, 2].clone()
    normext.batch_norm(x, buffers[:, 0], buffers[:, 1], training=True)
    normext.batch_norm(x, *copies, training=True)
    assert torch.equal(buffers, torch.stack([*copies, beside], dim=1))


def test_update_is_the_operator(backend: str) -> None:
    x = values(4, 5, 3, 3, device=backend)
    ours, theirs = running(5, device=backend), running(5, device=backend)
    for a, b in zip(ours, theirs, strict=True):
        b.copy_(a)
    normext.batch_norm(x, *ours, training=True, momentum=0.3)
    _, mean, _, var = ops.batch_norm_forward(x, None, None, None, None, True, EPS)
    ops.batch_norm_update_stats(*theirs, mean, var, 4 * 9, 0.3)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("way", [lambda f: f, torch.func.functionalize], ids=["eager", "functionalize"])
def test_update_checks_its_arguments(way: Callable, device: str) -> None:
    def update(running_size: int, dtype: torch.dtype) -> None:
        stats = [torch.ones(size, dtype=dtype, device=device) for size in (running_size, 3)]
        batch = torch.ones(3, device=device)
        way(lambda *tensors: ops.batch_norm_update_stats(*tensors, 8, 0.1))(*stats, batch, batch)

    update(3, torch.bfloat16)
    with pytest.raises(RuntimeError, match="running_mean should contain 3 elements not 1"):
        update(1, torch.float32)
    with pytest.raises(RuntimeError, match="expected mean and var of Double, but got Float and Float"):
        update(3, torch.float64)


@modes
def test_only_training_changes_running_statistics(backend: str, training: bool) -> None:
    stats = running(5, device=backend)
    before, versions = [t.clone() for t in stats], [t._version for t in stats]
    normext.batch_norm(values(4, 5, device=backend), *stats, training=training)
    for tensor, old, version in zip(stats, before, versions, strict=True):
        assert torch.equal(tensor, old) != training
        assert (tensor._version > version) == training  # autograd has to hear of it (pytorch#120622)


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": torch.ones(4)},
        {"bias": torch.ones(4)},
        {"weight": torch.ones(5, dtype=torch.float64)},
        {"running_var": torch.ones(4)},
        {"running_var": torch.ones(5, dtype=torch.float64)},
        {"running_var": None},
        {"eps": 0.0},
        {"input": torch.ones(1, 5)},  # one value per channel
    ],
    ids=lambda wrong: "-".join(wrong),
)
def test_nothing_is_updated_by_a_call_that_fails(backend: str, wrong: dict) -> None:
    mean, var = running(5, device=backend)
    before = mean.clone(), var.clone()
    arguments = {"input": values(4, 5, device=backend), "running_mean": mean, "running_var": var, "training": True}
    arguments |= {name: value.to(backend) if isinstance(value, Tensor) else value for name, value in wrong.items()}
    with pytest.raises((RuntimeError, ValueError)):
        normext.batch_norm(**arguments)
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])


# Hard numbers: the mean and the variance are float64's, rounded. torch's kernels fail most of these.

BATCHES = [(16, 3, 1, 1), (4, 3, 5, 5), (64, 3, 9, 9), (4, 17, 56, 56), (64, 32, 7, 7)]
batches = pytest.mark.parametrize("size", BATCHES, ids=str)


@batches
@layouts
@pytest.mark.parametrize("ratio", [1e3, 1e6])
def test_mean_of_many_deviations(backend: str, ratio: float, layout, size: tuple[int, ...]) -> None:
    x = layout((ratio + torch.randn(size, dtype=torch.float64)).float().to(backend))
    weight, bias = parameters((True, True), size[1], device=backend)
    check_forward(x, weight, bias)
    check_backward(x, torch.randn_like(x), weight, bias)


@batches
@layouts
@pytest.mark.parametrize("ratio", [0.9, 1, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=dtype_name)
def test_mean_of_some_deviations(backend: str, dtype: torch.dtype, ratio: float, layout, size: tuple[int, ...]) -> None:
    """Near zero there are shorter ways to the same results, elsewhere others: in one channel, and in all."""
    for channels in (slice(0, 1), slice(None)):
        x = torch.randn(size)
        x[:, channels] += ratio
        weight, bias = parameters((True, True), size[1], dtype=dtype, device=backend)
        weight[-1] = 0
        stats = x.mean((0, 2, 3)).to(dtype).to(backend), x.var((0, 2, 3)).to(dtype).to(backend)
        x = layout(x.to(dtype).to(backend))
        check_forward(x, weight, bias)
        check_forward(x, weight, bias, stats)
        check_backward(x, torch.randn_like(x), weight, bias)


@batches
@layouts
@pytest.mark.parametrize("scale, deviation", [(1.0, 1.0), (2.0**-115, 1.0), (2.0**100, 1.0), (2.0**-60, 2.0**30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_gradients_that_add_up_to_zero_or_little(
    backend: str, dtype: torch.dtype, scale: float, deviation: float, layout, size: tuple[int, ...]
) -> None:
    """Products that leave float32, or are subnormal, must be noticed. So must sums that leave nothing."""
    x = layout((deviation * torch.randn(size)).to(dtype).to(backend))
    grad_output = torch.randn(size)
    grad_output[1::2] = -grad_output[::2]
    grad_output = layout((scale * grad_output).to(dtype).to(backend))
    weight, bias = parameters((True, True), size[1], dtype=torch.float32, device=backend)
    check_backward(x, grad_output, weight, bias)


@batches
@layouts
@pytest.mark.parametrize("exponent", [-20, -60, -89, -91, -101, -104, -109])
def test_bfloat16_outputs_may_be_subnormal(backend: str, exponent: int, layout, size: tuple[int, ...]) -> None:
    """What is left of x - mean is 2^-24 of it, and times the weight a subnormal number or nearly one."""
    x = layout(torch.full(size, 0.75, dtype=torch.bfloat16, device=backend))
    one = torch.ones(size[1], device=backend)
    weight = 2.0**exponent * one
    output, *_ = ops.batch_norm_forward(x, 0.75 * one + 2.0**-24, one, weight, None, False, 0.0)
    assert torch.equal(output.double(), torch.full(size, -(2.0 ** (exponent - 24)), dtype=torch.double, device=backend))


@batches
@layouts
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e6 + 0.1, -1e30, torch.finfo(torch.float32).max])
def test_constant_channels_are_their_bias(backend: str, value: float, layout, size: tuple[int, ...]) -> None:
    x = layout(torch.full(size, value, device=backend))
    weight, bias = parameters((True, True), size[1], device=backend)
    output, mean, rstd, var = ops.batch_norm_forward(x, None, None, weight, bias, True, EPS)
    assert torch.equal(mean, x[0, :, 0, 0])
    assert torch.equal(var, torch.zeros_like(var))
    assert torch.equal(output, bias.view(1, -1, 1, 1).expand_as(x))
    torch.testing.assert_close(rstd, torch.full_like(rstd, EPS**-0.5), rtol=2**-22, atol=0)


@batches
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_beyond_the_square_root_of_the_range(backend: str, dtype: torch.dtype, layout, size: tuple[int, ...]) -> None:
    # 1e30 squared is beyond float32: the variance that is returned is infinite, what is computed with it is not.
    x = layout((1e30 * values(*size, dtype=torch.float64)).to(dtype).to(backend))
    weight, bias = parameters((True, True), size[1], dtype=dtype, device=backend)
    check_forward(x, weight, bias)
    check_backward(x, layout(values(*size, dtype=dtype, device=backend)), weight, bias)


@layouts
@pytest.mark.parametrize("bad", [[NAN], [INF], [-INF], [INF, -INF]], ids=str)
@pytest.mark.parametrize("where", ["input", "grad_output", "weight", "bias", "running_mean", "running_var"])
@modes
def test_nan_and_infinity_go_where_torch_lets_them(
    backend: str, training: bool, where: str, bad: list[float], layout
) -> None:
    tensors = {name: layout(values(2, 5, 3, 3, device=backend)) for name in ("input", "grad_output")}
    tensors["weight"], tensors["bias"] = parameters((True, True), 5, device=backend)
    tensors["running_mean"], tensors["running_var"] = running(5, device=backend)
    for i, value in enumerate(bad):
        if tensors[where].dim() == 1:
            tensors[where][1 + i] = value
        else:
            tensors[where][0, 1, 2, i] = value  # in one channel: the others stay as they are
    results = []
    # torch on the CPU: its kernels for channels_last on a GPU turn the infinite mean of such a channel into NaN.
    for function, device in ((normext.batch_norm, backend), (torch.nn.functional.batch_norm, "cpu")):
        on = {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
        inputs, stats = leaves(on["input"], on["weight"], on["bias"]), (on["running_mean"], on["running_var"])
        output = function(inputs[0], *stats, *inputs[1:], training=training)
        results.append([t.cpu() for t in (output, *stats, *gradients(output, inputs, on["grad_output"]))])
    # Which of inf - inf, inf * 0 and plain inf comes out where a weight or a gradient is infinite depends on how the
    # terms are grouped; where something does come out, does not.
    exact = 0 if where in ("weight", "grad_output") else 3
    for ours, theirs in zip(results[0][:exact], results[1][:exact], strict=True):
        assert_same_special_values(ours, theirs)
    for ours, theirs in zip(results[0][exact:], results[1][exact:], strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())


# Edges


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 2, 2), (3, 5, 0), (3, 0, 2), (3, 5, 0, 2)], ids=str)
@modes
def test_zero_size(backend: str, training: bool, shape: tuple[int, ...]) -> None:
    stats = running(shape[1], device=backend)
    before = [t.clone() for t in stats]
    inputs = leaves(torch.randn(shape, device=backend), *parameters((True, True), shape[1], device=backend))
    output = normext.batch_norm(inputs[0], *stats, *inputs[1:], training=training)
    assert output.shape == shape
    assert all(torch.equal(a, b) for a, b in zip(stats, before, strict=True))
    for tensor, grad in zip(inputs, gradients(output, inputs, torch.ones_like(output)), strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))  # empty, or a sum of nothing


@modes
def test_inputs_are_left_alone(backend: str, training: bool) -> None:
    tensors = [values(5, 33, device=backend), *parameters((True, True), 33, device=backend)]
    before = [t.clone() for t in tensors]
    inputs = leaves(*tensors)
    output = normext.batch_norm(inputs[0], *running(33, device=backend), *inputs[1:], training=training)
    gradients(output, inputs, before[0])
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


# The same bits


@pytest.mark.parametrize("size", [(64, 33, 7, 7), (2, 3, 224, 224), (5000, 17, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=dtype_name)
@layouts
def test_repeats_to_the_bit(backend: str, threads: int, layout, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    x, grad_output = (layout(values(*size, dtype=dtype, device=backend)) for _ in range(2))
    inputs = leaves(x, *parameters((True, True), size[1], dtype=dtype, device=backend))

    def run() -> list[Tensor | None]:
        stats = torch.zeros(size[1], device=backend), torch.ones(size[1], device=backend)
        output = normext.batch_norm(inputs[0], *(s.to(dtype) for s in stats), *inputs[1:], training=True)
        return [output, *stats, *gradients(output, inputs, grad_output)]

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@dtypes
@layouts
def test_evaluated_sample_does_not_depend_on_its_batch(backend: str, layout, dtype: torch.dtype) -> None:
    x = layout(values(9, 17, 5, 5, dtype=dtype, device=backend))
    stats, affine = running(17, dtype=dtype, device=backend), parameters((True, True), 17, dtype=dtype, device=backend)
    together = normext.batch_norm(x, *stats, *affine)
    for i in range(9):
        assert torch.equal(normext.batch_norm(x[i : i + 1], *stats, *affine), together[i : i + 1])


# The operators and the function are the same computation.


@affines
@modes
def test_function_and_operators_agree_to_the_bit(backend: str, training: bool, affine: tuple[bool, bool]) -> None:
    x, grad_output = (values(3, 5, 4, 4, device=backend) for _ in range(2))
    weight, bias = parameters(affine, 5, device=backend)
    stats = running(5, device=backend)
    output, mean, rstd, _ = ops.batch_norm_forward(x, *stats, weight, bias, training, EPS)
    mask = [True, *affine]
    grads = ops.batch_norm_backward(grad_output, x, mean, rstd, weight, training, EPS, mask)
    inputs = leaves(x, weight, bias)
    for function in (normext.batch_norm, ops.batch_norm):
        result = function(inputs[0], *(t.clone() for t in stats), *inputs[1:], training, 0.1, EPS)
        assert torch.equal(result, output)
        for asked, a, b in zip(mask, gradients(result, inputs, grad_output), grads, strict=True):
            assert not asked or torch.equal(a, b)


@pytest.mark.parametrize("needed", [(i, w, b) for i in (0, 1) for w in (0, 1) for b in (0, 1)], ids=str)
@layouts
@modes
def test_each_gradient_is_the_same_whichever_are_asked(
    backend: str, training: bool, layout, needed: tuple[int, int, int]
) -> None:
    x, grad_output = (layout(values(3, 5, 4, 4, device=backend)) for _ in range(2))
    stats = running(5, device=backend)
    inputs = leaves(x, *parameters((True, True), 5, device=backend))

    def run() -> Tensor:
        return normext.batch_norm(inputs[0], *(t.clone() for t in stats), *inputs[1:], training=training)

    every = gradients(run(), inputs, grad_output)
    for tensor, needs in zip(inputs, needed, strict=True):
        tensor.requires_grad_(bool(needs))
    output = run()
    assert output.requires_grad == any(needed)
    if any(needed):
        output.backward(grad_output)
    for tensor, needs, grad in zip(inputs, needed, every, strict=True):
        assert torch.equal(tensor.grad, grad) if needs else tensor.grad is None


def test_evaluation_keeps_the_statistics_it_used(backend: str) -> None:
    # A network may be evaluated, then trained, and only then asked for the gradient of the evaluation.
    (x,) = leaves(values(4, 5, device=backend))
    stats = running(5, device=backend)
    grad_output = values(4, 5, device=backend)
    expected = reference.batch_norm(x, *stats, grad_output=grad_output)
    output = normext.batch_norm(x, *stats)
    normext.batch_norm(x, *stats, training=True)
    assert_close(torch.autograd.grad(output, x, grad_output)[0], expected.grad_input)
