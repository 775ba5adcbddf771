"""What follows BatchNorm, computed with it: a residual and an activation, by every implementation of the kernels."""

import itertools

import pytest
import torch
from cases import activate
from inputs import DTYPE_PAIRS, HALF, channels_last, dtype_name, gradients, leaves, off_by, parameters, running, values
from torch import Tensor
from torch.nn import functional as F

import normext
from normext import activations

Activation = str | tuple[str, float] | None
FOLLOWING = [
    ("relu", False),
    (("leaky_relu", 0.2), False),
    ("silu", False),
    (None, True),
    ("relu", True),
    ("leaky_relu", True),
    ("silu", True),
]
following = pytest.mark.parametrize(("activation", "adds"), FOLLOWING, ids=str)
modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
pairs = pytest.mark.parametrize("pair", DTYPE_PAIRS, ids=lambda pair: "-".join(map(dtype_name, pair)))

# [N, C]; planes shorter than a vector and longer; both layouts of images; 5 dimensions; channels that threads share.
SHAPES = [(9, 70), (3, 5, 7), (2, 17, 9, 9), (3, 6, 40, 31), (2, 3, 4, 5, 3), (2, 2, 150, 140)]


def laid_out(shape: tuple[int, ...], last: bool, dtype: torch.dtype, device: str) -> Tensor:
    x = values(*shape, dtype=dtype, device=device)
    return channels_last(x) if last else x


def check(
    x: Tensor, residual: Tensor | None, affine: tuple, stats: tuple, training: bool, activation: Activation
) -> None:
    """Output and all gradients, against the same in float64, within one rounding and what sums are allowed.

    In half types the gradient of a sum with a residual is rounded before the norm's backward reads it, as by torch.
    """
    grad_output = values(*x.shape, dtype=x.dtype, device=x.device.type)
    given = [x, *affine, residual]
    wide = leaves(*(None if t is None else t.double() for t in given))
    wide_stats = [None if t is None else t.double() for t in stats]
    z = F.batch_norm(wide[0], *wide_stats, *wide[1:3], training)
    expected = activate(z if residual is None else z + wide[3], activation)
    expected = [expected, *gradients(expected, wide, grad_output.double())]
    inputs = leaves(*given)
    output = normext.batch_norm(inputs[0], *stats, *inputs[1:3], training, residual=inputs[3], activation=activation)
    for actual, wanted in zip([output, *gradients(output, inputs, grad_output)], expected, strict=True):
        if actual is None:
            continue
        eps = torch.finfo(actual.dtype).eps
        summing = 1e-13 if x.dtype == torch.float64 else 4e-6
        if residual is not None and activation is not None and x.dtype in HALF:
            summing = torch.finfo(x.dtype).eps
        allowed = summing * wanted.abs().max().item()
        torch.testing.assert_close(actual.double(), wanted, rtol=eps, atol=allowed)
    assert output.stride() == normext.batch_norm(x, *stats, training=training).stride()


@following
@pairs
@modes
def test_fused(
    backend: str, training: bool, pair: tuple[torch.dtype, torch.dtype], activation: Activation, adds: bool
) -> None:
    for shape, last in itertools.product(SHAPES, (False, True)):
        if last and len(shape) < 4:
            continue
        x, residual = (laid_out(shape, last, pair[0], backend) for _ in range(2))
        affine = parameters((True, True), shape[1], dtype=pair[1], device=backend)
        stats = (None, None) if training else running(shape[1], dtype=pair[1], device=backend)
        check(x, residual if adds else None, affine, stats, training, activation)


@pytest.mark.parametrize("affine", [(True, False), (False, True), (False, False)], ids=str)
@modes
def test_parameters(backend: str, training: bool, affine: tuple[bool, bool]) -> None:
    for activation, adds in (("silu", False), ("relu", True), (None, True)):
        x, residual = (laid_out((2, 6, 5, 7), adds, torch.float32, backend) for _ in range(2))
        stats = (None, None) if training else running(6, device=backend)
        check(x, residual if adds else None, parameters(affine, 6, device=backend), stats, training, activation)


@pytest.mark.parametrize(
    "layout",
    [
        channels_last,
        off_by,
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x[:1, :, :1].expand_as(x),
    ],
    ids=["channels_last", "off by one", "transposed", "expanded"],
)
def test_residuals_of_other_layouts_are_made_to_fit(backend: str, layout) -> None:
    x, residual = (values(3, 5, 4, 6, device=backend) for _ in range(2))
    for data in (x, channels_last(x)):
        check(data, layout(residual), parameters((True, True), 5, device=backend), (None, None), True, "relu")


@modes
def test_threads(backend: str, threads: int, training: bool) -> None:
    for activation, adds in (("silu", False), ("relu", True)):
        for shape in ((64, 20, 7, 7), (2, 3, 160, 170), (3000, 33)):
            x, residual = (values(*shape, device=backend) for _ in range(2))
            stats = (None, None) if training else running(shape[1], device=backend)
            affine = parameters((True, True), shape[1], device=backend)
            for last in (False, True) if len(shape) == 4 else (False,):
                tensors = (channels_last(t) if last else t for t in (x, residual if adds else x))
                data, added = tensors
                check(data, added if adds else None, affine, stats, training, activation)


@pytest.mark.parametrize("needed", [(1, 0, 0, 1), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 0, 0, 0)], ids=str)
@modes
def test_each_gradient_is_the_same_whichever_are_asked(
    backend: str, training: bool, needed: tuple[int, int, int, int]
) -> None:
    x, residual, grad_output = (values(3, 5, 4, 4, device=backend) for _ in range(3))
    stats = running(5, device=backend)
    inputs = leaves(x, *parameters((True, True), 5, device=backend), residual)

    def run(activation: Activation) -> Tensor:
        copies = (t.clone() for t in stats)
        return normext.batch_norm(inputs[0], *copies, *inputs[1:3], training, residual=inputs[3], activation=activation)

    for activation in ("silu", None):
        for tensor in inputs:
            tensor.requires_grad_(True).grad = None
        every = gradients(run(activation), inputs, grad_output)
        for tensor, needs in zip(inputs, needed, strict=True):
            tensor.requires_grad_(bool(needs))
        run(activation).backward(grad_output)
        for tensor, needs, grad in zip(inputs, needed, every, strict=True):
            assert torch.equal(tensor.grad, grad) if needs else tensor.grad is None


@pytest.mark.parametrize(
    ("activation", "adds", "saved"), [("relu", False, 1), (None, True, 1), ("relu", True, 2)], ids=str
)
def test_what_backward_keeps(device: str, activation: Activation, adds: bool, saved: int) -> None:
    """The input; and the residual where the activation's derivative is taken at a sum with it."""
    x, residual = leaves(*(values(4, 3, 5, 5, device=device) for _ in range(2)))
    weight, bias = leaves(*parameters((True, True), 3, device=device))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        normext.batch_norm(
            x, None, None, weight, bias, True, residual=residual if adds else None, activation=activation
        )
    assert sum(t.numel() == x.numel() for t in kept) == saved


def test_relu_of_infinity_and_of_nan(backend: str) -> None:
    """As torch's: zero, with a derivative of zero for an infinite gradient, too; and NaN, with one of one."""
    x = values(2, 3, 20, device=backend)
    x[0, 1, 3], x[1, 2, 7], x[0, 0, 5] = -float("inf"), float("nan"), -9.0
    grad_output = torch.ones_like(x)
    grad_output[0, 0, 5] = float("inf")
    stats = running(3, device=backend)
    for residual in (None, values(2, 3, 20, device=backend)):
        inputs = leaves(x, residual)
        output = normext.batch_norm(inputs[0], *stats, residual=inputs[1], activation="relu")
        exact = leaves(x.double(), None if residual is None else residual.double())
        z = F.batch_norm(exact[0], *(t.double() for t in stats))
        expected = F.relu(z if residual is None else z + exact[1])
        torch.testing.assert_close(output.double(), expected, equal_nan=True, rtol=1e-5, atol=1e-5)
        assert output[0, 1, 3] == 0 and output.isnan().sum() == 1
        wanted = gradients(expected, exact, grad_output.double())
        for gradient, want in zip(gradients(output, inputs, grad_output), wanted, strict=True):
            torch.testing.assert_close(gradient, want if want is None else want.float(), rtol=1e-5, atol=1e-5)
            assert gradient is None or (gradient[0, 1, 3] == 0 and gradient[0, 0, 5] == 0)


def test_gradient_of_relu_by_torchs_operators() -> None:
    """What SyncBatchNorm's halves take apart from the kernels: the same."""
    z = torch.tensor([-1.0, 0.0, 2.0, float("nan")])
    grad_output = torch.tensor([float("inf"), float("inf"), 3.0, 4.0])
    torch.testing.assert_close(activations.gradient(grad_output, z, "relu", 0.0), torch.tensor([0.0, 0.0, 3.0, 4.0]))


def test_running_statistics_are_the_norms_own(backend: str) -> None:
    x, residual = (values(4, 5, 6, device=backend) for _ in range(2))
    ours, plain = running(5, device=backend), running(5, device=backend)
    for a, b in zip(ours, plain, strict=True):
        b.copy_(a)
    normext.batch_norm(x, *ours, training=True, residual=residual, activation="relu")
    normext.batch_norm(x, *plain, training=True)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"residual": torch.ones(4, 4, 3)}, "Expected residual to be of same shape as input"),
        ({"residual": torch.ones(5, 3)}, "Expected residual to be of same shape as input"),
        ({"residual": torch.ones(4, 5, 3, dtype=torch.float64)}, "expected residual of Float for an input of Float"),
        ({"residual": torch.ones(4, 5, 3, device="meta")}, "Expected all tensors to be on the same device"),
        ({"activation": "gelu"}, "expected activation to be"),
        ({"activation": ("relu", 0.1)}, "expected activation to be"),
    ],
    ids=["sizes", "dimensions", "dtype", "device", "name", "slope"],
)
@pytest.mark.parametrize("way", ["eager", "func", "compiled"])
def test_errors_leave_the_statistics_alone(wrong: dict, message: str, way: str) -> None:
    x, stats = torch.randn(4, 5, 3), running(5)
    before = [t.clone() for t in stats]

    def call(x: Tensor) -> Tensor:
        return normext.batch_norm(x, *stats, training=True, **wrong)

    function = {
        "eager": call,
        "func": lambda x: torch.func.jvp(call, (x,), (x,)),
        "compiled": torch.compile(call, backend="eager"),
    }[way]
    with pytest.raises((RuntimeError, ValueError, torch._dynamo.exc.TorchDynamoException), match=message):
        function(x)
    assert all(torch.equal(a, b) for a, b in zip(stats, before, strict=True))


def test_modules(device: str) -> None:
    """The repr says the activation, a state_dict is torch's, a residual is the second argument."""
    ours, theirs = normext.BatchNorm2d(3, activation="relu", device=device), torch.nn.BatchNorm2d(3, device=device)
    assert repr(ours) == repr(theirs)[:-1] + ", activation='relu')"
    assert repr(normext.BatchNorm2d(3)) == repr(torch.nn.BatchNorm2d(3))
    ours.load_state_dict(theirs.state_dict())
    x, residual = (torch.randn(4, 3, 5, 6, device=device) for _ in range(2))
    for training in (True, False):
        torch.testing.assert_close(ours.train(training)(x, residual), F.relu(theirs.train(training)(x) + residual))
        torch.testing.assert_close(ours(x), F.relu(theirs(x)))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    lazy = normext.LazyBatchNorm2d(activation=("leaky_relu", 0.2), device=device)
    torch.testing.assert_close(
        lazy(x, residual), F.leaky_relu(F.batch_norm(x, None, None, training=True) + residual, 0.2)
    )
    assert type(lazy) is normext.BatchNorm2d and lazy.activation == ("leaky_relu", 0.2)


def test_torchs_fusion_refuses_an_activation_that_it_would_drop() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), normext.BatchNorm2d(4, activation="silu")).eval()
    with pytest.raises(NotImplementedError, match="without an activation"):
        torch.ao.quantization.fuse_modules(model, ["0", "1"])
