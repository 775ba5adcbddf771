"""GroupNorm and InstanceNorm, every implementation of their kernels, against the float64 reference, and what follows
them; BatchNorm's own tests are in test_batch_norm.py, and what is around the kernels in those over cases.CASES.
"""

from collections.abc import Callable

import pytest
import torch
from inputs import DTYPE_PAIRS, HALF, channels_last, dtype_name, gradients, leaves, off_by, parameters, values
from reference import assert_close, assert_same_special_values, group_norm, running_statistic, unbiased
from torch import Tensor
from torch.nn import functional as F

import normext

ops = torch.ops.normext
EPS = 1e-5
NAN, INF = float("nan"), float("inf")

# Shapes and numbers of groups: no spatial dimension; planes shorter than two vectors, and next to that; groups that are
# cut into units by channels, and planes into pieces; more columns than a table holds; groups of one channel and of all.
SHAPES = [
    ((3, 6), 2),
    ((5, 64), 4),
    ((2, 2100), 3),
    ((2, 4, 3), 2),
    ((2, 6, 7), 6),
    ((3, 4, 15), 4),
    ((2, 8, 16), 2),
    ((1, 6, 31), 3),
    ((3, 4, 33), 1),
    ((2, 10, 8, 8), 5),
    ((2, 6, 14, 14), 2),
    ((1, 70, 23, 29), 7),
    ((1, 2, 190, 180), 1),
    ((2, 3, 5, 41, 200), 3),
    ((2, 4, 3, 4, 5), 2),
]
shapes = pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
pairs = pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=lambda pair: "-".join(map(dtype_name, pair)))
ACTIVATIONS = ["relu", "leaky_relu", ("leaky_relu", 0.2), "silu"]
activations = pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)


def layouts(x: Tensor) -> list[Tensor]:
    """The same values in every layout that is read in place."""
    return [x] if x.dim() < 4 else [x, channels_last(x)]


def check(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    grad_output: Tensor,
    eps: float = EPS,
    statistics: bool = True,
) -> None:
    """Output, statistics and gradients."""
    expected = group_norm(x, groups, weight, bias, eps, grad_output)
    output, mean, rstd, var = ops.group_norm_forward(x, groups, weight, bias, eps)
    assert_close(output, expected.output)
    if statistics:
        for actual, name in ((mean, "mean"), (rstd, "rstd"), (var, "var")):
            assert_close(actual, getattr(expected, name))
    inputs = leaves(x, weight, bias)
    found = gradients(normext.group_norm(inputs[0], groups, *inputs[1:], eps), inputs, grad_output)
    for actual, name in zip(found, ("grad_input", "grad_weight", "grad_bias"), strict=True):
        if actual is not None:
            assert_close(actual, getattr(expected, name))


@pairs
@shapes
def test_group_norm(backend: str, shape: tuple[int, ...], groups: int, pair: tuple[torch.dtype, torch.dtype]) -> None:
    x, grad_output = (values(*shape, dtype=pair[0], device=backend) for _ in range(2))
    weight, bias = parameters((True, True), shape[1], dtype=pair[1], device=backend)
    for each in layouts(x):
        check(each, groups, weight, bias, grad_output)
        assert ops.group_norm_forward(each, groups, weight, bias, EPS)[0].stride() == each.stride()


@pytest.mark.parametrize("affine", [(True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("shape", [(3, 6, 5), (2, 6, 9, 9)], ids=str)
def test_parameters(backend: str, shape: tuple[int, ...], affine: tuple[bool, bool]) -> None:
    x, grad_output = (values(*shape, device=backend) for _ in range(2))
    for each in layouts(x):
        check(each, 3, *parameters(affine, 6, device=backend), grad_output)


@pytest.mark.parametrize("shape", [(2, 6, 200, 190), (9, 8, 30, 30), (3, 6, 3)], ids=str)
def test_threads(backend: str, threads: int, shape: tuple[int, ...]) -> None:
    x, grad_output = (values(*shape, device=backend) for _ in range(2))
    for each in layouts(x):
        check(each, 2, *parameters((True, True), shape[1], device=backend), grad_output)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "off by one": off_by,
    "off by one, channels last": lambda x: off_by(channels_last(x)),
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_layouts(backend: str, dtype: torch.dtype, layout: Callable[[Tensor], Tensor]) -> None:
    x, grad_output = (values(3, 4, 7, 6, dtype=dtype, device=backend) for _ in range(2))
    check(layout(x), 2, *parameters((True, True), 4, dtype=dtype, device=backend), layout(grad_output))


# Hard numbers: the mean and the variance are float64's, rounded.


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 6, 20, 20)], ids=str)
@pytest.mark.parametrize("scale", [1e30, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_far_ends_of_the_range(backend: str, dtype: torch.dtype, scale: float, shape: tuple[int, ...]) -> None:
    x = (scale * values(*shape, dtype=torch.float64)).to(dtype).to(backend)
    grad_output = values(*shape, dtype=dtype, device=backend)
    for each in layouts(x):
        check(each, 2, *parameters((True, True), shape[1], dtype=dtype, device=backend), grad_output, 0.0)


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 6, 20, 20)], ids=str)
def test_mean_of_a_million_deviations(backend: str, shape: tuple[int, ...]) -> None:
    x = (1e6 + values(*shape, dtype=torch.float64)).float().to(backend)
    for each in layouts(x):
        check(each, 2, *parameters((True, True), shape[1], device=backend), values(*shape, device=backend))


def test_constant_groups(backend: str) -> None:
    x = torch.full((2, 4, 6, 6), 3.25, device=backend)
    bias = torch.arange(4.0, device=backend)
    output = normext.group_norm(x, 2, None, bias)
    assert torch.equal(output, bias.view(1, 4, 1, 1).expand_as(x))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 6, 6)], ids=str)
def test_nan_and_infinity_stay_in_their_group(backend: str, shape: tuple[int, ...], bad: float) -> None:
    x = values(*shape, device=backend)
    x[1, 2, 3] = bad
    for each in layouts(x):
        output, mean, rstd, _ = ops.group_norm_forward(each, 2, None, None, EPS)
        assert_same_special_values(output, F.group_norm(x, 2))
        assert output[1, 2:].isnan().all() and output.isnan().sum() == output[1, 2:].numel()
        assert torch.equal(mean.isfinite(), rstd.isfinite())


# The same bits


# Four threads take the four samples of the last one whole, and share one or two: on the CPU SiLU's gradient is kept
# from one pass to the next in the first case, and computed twice in the other.
@pytest.mark.parametrize(
    ("shape", "groups"), [((5, 6), 2), ((4, 6, 5), 3), ((3, 4, 200, 180), 2), ((4, 4, 161, 161), 1)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_sample_does_not_depend_on_its_batch(
    backend: str, threads: int, dtype: torch.dtype, shape: tuple[int, ...], groups: int
) -> None:
    tensors = [values(*shape, dtype=dtype, device=backend) for _ in range(2)]
    weight, bias = parameters((True, True), shape[1], dtype=dtype, device=backend)

    def run(x: Tensor, grad_output: Tensor, activation: str | None) -> list[Tensor]:
        output, *statistics = ops.group_norm_forward(x, groups, weight, bias, EPS, activation)
        arguments = grad_output, x, groups, *statistics[:2], weight, bias, EPS, [True, False, False], activation
        return [output, *statistics, ops.group_norm_backward(*arguments)[0]]

    for activation in (None, "silu"):
        for form in range(len(layouts(tensors[0]))):
            x, grad_output = (layouts(t)[form] for t in tensors)
            together = run(x, grad_output, activation)
            for part in (slice(0, 1), slice(1, 3)):
                alone = run(x[part], grad_output[part], activation)
                assert all(torch.equal(a, b[part]) for a, b in zip(alone, together, strict=True))
            again = run(x, grad_output, activation)
            assert all(torch.equal(a, b) for a, b in zip(again, together, strict=True))


# What follows the norm


def plain(x: Tensor, activation: str | tuple[str, float]) -> Tensor:
    name, slope = activation if isinstance(activation, tuple) else (activation, 0.01)
    return F.leaky_relu(x, slope) if name == "leaky_relu" else getattr(F, name)(x)


@activations
@pairs
@pytest.mark.parametrize("shape", [(3, 48), (2, 6, 5), (2, 6, 9, 9)], ids=str)
def test_activation(
    backend: str,
    shape: tuple[int, ...],
    pair: tuple[torch.dtype, torch.dtype],
    activation: str | tuple[str, float],
) -> None:
    """Against the same in float64, within what the norm itself is allowed and one rounding of the result."""
    affine = parameters((True, True), shape[1], dtype=pair[1], device=backend)
    tensors = [values(*shape, dtype=pair[0], device=backend), *affine]
    grad_output = values(*shape, dtype=pair[0], device=backend)
    wide = leaves(*(t.double() for t in tensors))
    expected = plain(F.group_norm(wide[0], 3, *wide[1:]), activation)
    expected = [expected, *gradients(expected, wide, grad_output.double())]
    for each in layouts(tensors[0]):
        inputs = leaves(each, *tensors[1:])
        output = normext.group_norm(inputs[0], 3, *inputs[1:], activation=activation)
        for actual, wanted in zip([output, *gradients(output, inputs, grad_output)], expected, strict=True):
            summing = 1e-13 if actual.dtype == torch.float64 else 4e-6
            allowed = summing * wanted.abs().max().item()
            torch.testing.assert_close(actual.double(), wanted, rtol=torch.finfo(actual.dtype).eps, atol=allowed)


def test_silu_over_its_range(backend: str) -> None:
    """From where it is zero to where it is the identity: the norm passes a bias on as it is."""
    for dtype, ulps in ((torch.float32, 4), (torch.float64, 8)):
        z = torch.cat(
            [torch.linspace(-120, 120, 4001, dtype=dtype), torch.tensor([-1e30, 1e30, -0.0, 1e-30], dtype=dtype)]
        )
        zero = torch.zeros(1, z.numel(), 4, dtype=dtype)
        output = normext.group_norm(zero.to(backend), z.numel(), None, z.to(backend), activation="silu")[0, :, 0]
        torch.testing.assert_close(
            output.cpu().double(), F.silu(z.double()), rtol=ulps * torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny
        )


@pytest.mark.parametrize("activation", ["gelu", ("relu", 0.1), ("leaky_relu",), 3], ids=str)
def test_other_activations_are_refused(activation: object) -> None:
    error = TypeError if activation == 3 else ValueError
    with pytest.raises(error, match="activation"):
        normext.group_norm(torch.randn(2, 4, 3), 2, activation=activation)
    with pytest.raises(error, match="activation"):
        normext.instance_norm(torch.randn(2, 4, 3), activation=activation)


# InstanceNorm


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 6, 7), (2, 3, 4, 5, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_instance_norm(backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """It is GroupNorm with a channel to a group, and running statistics that are means over the samples."""
    x = values(*shape, dtype=dtype, device=backend)
    weight, bias = parameters((True, True), shape[1], dtype=dtype, device=backend)
    for each in layouts(x):
        old = torch.linspace(-1, 1, shape[1]).to(backend), torch.linspace(0.5, 2, shape[1]).to(backend)
        running = [t.clone() for t in old]
        output = normext.instance_norm(each, weight=weight, bias=bias)
        assert torch.equal(output, normext.group_norm(each, shape[1], weight, bias))
        assert output.stride() == each.stride()
        normext.instance_norm(each, *running, momentum=0.3)
        expected = group_norm(each, shape[1])
        for actual, before, batch in zip(
            running, old, (expected.mean, unbiased(expected.var, x[0, 0].numel())), strict=True
        ):
            mean = type(batch)(batch.value.mean(0), batch.error.mean(0) + 1e-6 * abs(batch.value).mean(0), batch.dtype)
            assert_close(actual, running_statistic(before, mean, 0.3))
        given = normext.instance_norm(each, *old, weight.float(), bias.float(), use_input_stats=False)
        assert torch.equal(given, normext.batch_norm(each, *old, weight.float(), bias.float()))


@pytest.mark.parametrize("name", ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"])
@pytest.mark.parametrize("tracking", [False, True])
def test_instance_norm_modules_are_torchs(device: str, name: str, tracking: bool) -> None:
    ours, theirs = (
        getattr(library, name)(3, affine=True, track_running_stats=tracking, device=device)
        for library in (normext, torch.nn)
    )
    shape = (4, 3, *[5, 6, 7][: int(name[-2])])
    for training in (True, False):
        for x in (torch.randn(shape, device=device), torch.randn(shape[1:], device=device)):
            torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    with pytest.raises(ValueError, match="expected input's size at dim=1 to match num_features"):
        ours(torch.randn(4, 2, *shape[2:], device=device))


# Modules, errors, empty inputs


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("LazyBatchNorm1d", (), (4, 3, 5)),
        ("LazyBatchNorm2d", (), (4, 3, 5, 2)),
        ("LazyBatchNorm3d", (), (4, 3, 5, 2, 2)),
        ("LazyInstanceNorm1d", (1e-5, 0.1, True), (4, 3, 5)),
        ("LazyInstanceNorm2d", (1e-5, 0.1, True), (4, 3, 5, 2)),
        ("LazyInstanceNorm3d", (1e-5, 0.1, True), (4, 3, 5, 2, 2)),
    ],
)
def test_lazy_modules_become_normexts(name: str, arguments: tuple, shape: tuple[int, ...]) -> None:
    ours, theirs = (getattr(library, name)(*arguments) for library in (normext, torch.nn))
    x = torch.randn(shape)
    torch.testing.assert_close(ours(x), theirs(x))
    assert type(ours) is getattr(normext, name.removeprefix("Lazy"))
    assert ours.weight.shape == (3,)


def test_repr_and_state_dict() -> None:
    ours, theirs = normext.GroupNorm(2, 4, activation="silu"), torch.nn.GroupNorm(2, 4)
    assert repr(ours) == repr(theirs)[:-1] + ", activation='silu')"
    assert repr(normext.GroupNorm(2, 4)) == repr(theirs)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    theirs.__class__ = normext.GroupNorm  # the swap that README shows
    assert theirs.activation is None
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(ours(x), F.silu(theirs(x)))
    norm = normext.InstanceNorm2d(4, activation=("leaky_relu", 0.2))
    assert repr(norm).endswith("activation=('leaky_relu', 0.2))")
    torch.testing.assert_close(norm(x[None]), F.leaky_relu(F.instance_norm(x[None]), 0.2))


ERRORS: dict[str, Callable] = {
    "groups that do not divide": lambda f: f.group_norm(torch.ones(2, 4, 5), 3),
    "negative groups": lambda f: f.group_norm(torch.ones(2, 4, 5), -1),
    "one dimension": lambda f: f.group_norm(torch.ones(4), 2),
    "one value": lambda f: f.group_norm(torch.ones(1, 4), 4),
    "weight of another size": lambda f: f.group_norm(torch.ones(2, 4, 5), 2, torch.ones(3)),
    "weight of another shape": lambda f: f.group_norm(torch.ones(2, 4, 5), 2, torch.ones(2, 2)),
    "an input of integers": lambda f: f.group_norm(torch.ones(2, 4, 5, dtype=torch.long), 2),
    "a float for the groups": lambda f: f.group_norm(torch.ones(2, 4, 5), 2.0),
    "parameters of another dtype": lambda f: f.group_norm(torch.ones(2, 4, 5), 2, torch.ones(4).double()),
    "one spatial element": lambda f: f.instance_norm(torch.ones(2, 4, 1)),
    "no spatial element": lambda f: f.instance_norm(torch.ones(2, 4)),
    "no running statistics": lambda f: f.instance_norm(torch.ones(2, 4, 5), use_input_stats=False),
    "one running statistic": lambda f: f.instance_norm(torch.ones(2, 4, 5), torch.ones(4)),
    "running statistics of another size": lambda f: f.instance_norm(torch.ones(2, 4, 5), torch.ones(3), torch.ones(3)),
    "a derivative of running statistics": lambda f: f.instance_norm(
        torch.ones(2, 4, 5), torch.ones(4, requires_grad=True), torch.ones(4)
    ),
}


@pytest.mark.parametrize("call", ERRORS.values(), ids=ERRORS.keys())
def test_errors_are_torchs(call: Callable) -> None:
    """Of torch's type, and in its words to begin with."""
    with pytest.raises(Exception) as theirs:
        call(F)
    with pytest.raises(type(theirs.value)) as ours:
        call(normext)
    with pytest.raises(type(theirs.value)):
        torch.func.vmap(lambda _: call(normext))(torch.zeros(1))
    own_words = ("mixed dtype", "not implemented", "not differentiable")
    if not any(words in str(theirs.value) for words in own_words):
        assert str(ours.value).split()[:3] == str(theirs.value).split()[:3]


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 4, 0), (2, 0, 5), (0, 0), (2, 4, 0, 3)], ids=str)
def test_empty_inputs(backend: str, shape: tuple[int, ...]) -> None:
    inputs = leaves(torch.randn(shape, device=backend), *parameters((True, True), shape[1], device=backend))
    for output in (
        normext.group_norm(inputs[0], 2, *inputs[1:], activation="silu"),
        normext.instance_norm(inputs[0], None, None, *inputs[1:]) if len(shape) > 2 else inputs[0] * 1,
    ):
        assert output.shape == shape
    output = normext.group_norm(inputs[0], 2, *inputs[1:])
    for tensor, grad in zip(inputs, gradients(output, inputs, torch.ones_like(output)), strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


@pytest.mark.parametrize("dtype", HALF, ids=dtype_name)
def test_every_nan_stays_one(backend: str, dtype: torch.dtype) -> None:
    weight = torch.ones(6, device=backend)
    weight[2] = NAN
    output = normext.group_norm(values(3, 6, 40, dtype=dtype, device=backend), 2, weight, activation="relu")
    assert output[:, 2].isnan().all() and not output[:, 3:].isnan().any()
