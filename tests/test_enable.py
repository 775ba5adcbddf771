"""enable(): torch's own norm operators, computed by normext's kernels, compute what they did."""

import copy
import threading
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from inputs import DTYPE_PAIRS, DTYPES, channels_last, dtype_name, leaves, running, values
from torch import Tensor, func, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

import normext

aten = torch.ops.aten
NORMS = ["layer_norm", "rms_norm", "batch_norm", "group_norm"]
# torch's float32 rows of one value are off by their rounded mean times an rstd of 316.
TOLERANCE = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-9},
    torch.float32: {"rtol": 5e-5, "atol": 2e-4},
    torch.bfloat16: {"rtol": 4e-2, "atol": 4e-2},
    torch.float16: {"rtol": 5e-3, "atol": 5e-3},
}


@pytest.fixture(autouse=True)
def nothing_enabled() -> Iterator[None]:
    yield
    normext.disable()


def both(function: Callable) -> tuple[object, object]:
    """What a function returns by torch, and with everything enabled; it makes its own tensors, or changes none."""
    theirs = function()
    with normext.enabled():
        return theirs, function()


def layout(tensors: object) -> list:
    """Whatever must be torch's to the bit."""
    return [t if t is None else (t.shape, t.dtype, t.stride(), t.device) for t in tensors]


# Which kernel computes: of rows of 1e30, squares leave float32's range, and normext's answer is right all the same


def huge(norm: str, device: str = "cpu") -> Tensor:
    x = 1e30 * torch.randn(4, 6, 8, device=device)
    if norm == "batch_norm":
        return F.batch_norm(x, None, None, training=True)
    if norm == "group_norm":
        return F.group_norm(x, 2)
    return getattr(F, norm)(x, [8])


def computed_by_normext(norm: str, device: str = "cpu") -> bool:
    return bool((huge(norm, device).square().mean() - 1).abs() < 1e-3)


def by_normext(device: str = "cpu") -> list[str]:
    return [norm for norm in NORMS if computed_by_normext(norm, device)]


def test_enable_and_disable(device: str) -> None:
    assert by_normext(device) == []
    for _ in range(2):  # again changes nothing
        normext.enable()
        assert by_normext(device) == NORMS
    for _ in range(2):
        normext.disable()
        assert by_normext(device) == []


def test_some_norms() -> None:
    normext.enable("rms_norm")
    assert by_normext() == ["rms_norm"]
    normext.enable(("layer_norm", "rms_norm"))
    assert by_normext() == ["layer_norm", "rms_norm"]
    normext.disable(["rms_norm", "group_norm"])
    assert by_normext() == ["layer_norm"]
    normext.enable([])
    assert by_normext() == ["layer_norm"]


@pytest.mark.parametrize("call", [normext.enable, normext.disable, lambda norms: normext.enabled(norms).__enter__()])
@pytest.mark.parametrize("norms", ["layernorm", ["layer_norm", "layernorm"]])
def test_unknown_norms(call: Callable, norms: object) -> None:
    with pytest.raises(ValueError, match=r"layer_norm, rms_norm, batch_norm, group_norm.*'layernorm'"):
        call(norms)
    assert by_normext() == []


def test_enabled_restores_what_was_before() -> None:
    with normext.enabled("layer_norm"):
        with normext.enabled():
            assert by_normext() == NORMS
        assert by_normext() == ["layer_norm"]
        with pytest.raises(KeyError), normext.enabled(["rms_norm"]):
            assert by_normext() == ["layer_norm", "rms_norm"]
            normext.disable()
            raise KeyError
        assert by_normext() == ["layer_norm"]
    assert by_normext() == []


def test_says_nothing_but_in_show_config(capfd: pytest.CaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normext.enable(("layer_norm", "batch_norm"))
    assert capfd.readouterr() == ("", "")
    normext.show_config()
    assert "enabled: layer_norm, batch_norm" in " ".join(capfd.readouterr().out.split())
    normext.disable()
    normext.show_config()
    assert "enabled: none" in " ".join(capfd.readouterr().out.split())


def test_other_threads_compute_meanwhile() -> None:
    x, w = values(16, 8), torch.ones(8)

    def norms(x: Tensor) -> tuple[Tensor, ...]:
        rows = F.layer_norm(x, [8], w), F.rms_norm(x, [8], w)
        return *rows, F.batch_norm(x, None, None, w, training=True), F.group_norm(x, 2, w)

    expected = norms(x)
    stop, wrong = threading.Event(), []

    def compute() -> None:
        while not stop.is_set():
            leaf = x.clone().requires_grad_()
            found = norms(leaf)
            sum(found).sum().backward()
            if not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, expected, strict=True)):
                wrong.append(found)

    threads = [threading.Thread(target=compute) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        normext.enable()
        normext.disable()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


# torch's own samples, and the errors it raises

OPERATORS = {
    *("native_layer_norm", "native_batch_norm", "nn.functional.layer_norm", "nn.functional.batch_norm"),
    *("nn.functional.instance_norm", "nn.functional.rms_norm", "nn.functional.group_norm"),
}
infos = [info for info in op_db if info.name in OPERATORS and not info.variant_test_name]
modules = [
    info
    for info in module_db
    if issubclass(info.module_cls, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase))
    and "Lazy" not in info.name
]


def run(function: Callable, arguments: list, options: dict) -> list[Tensor]:
    """Outputs, what became of the arguments, gradients."""
    outputs = function(*arguments, **options)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    tensors = [t for t in arguments if isinstance(t, Tensor)]
    wanting = [t for t in tensors if t.requires_grad]
    if outputs[0].numel() and wanting:
        outputs[0].backward(torch.linspace(-1, 1, outputs[0].numel()).view_as(outputs[0]).to(outputs[0]))
    return outputs + tensors + [t.grad for t in wanting if t.grad is not None]


@pytest.mark.parametrize("info", infos, ids=lambda info: info.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_samples(device: str, dtype: torch.dtype, info: object) -> None:
    for sample in info.sample_inputs(device, dtype, requires_grad=True):
        arguments = [sample.input, *sample.args]
        theirs, ours = both(lambda a=arguments, s=sample: run(info.op, copy.deepcopy(a), s.kwargs))
        assert layout(ours) == layout(theirs)
        torch.testing.assert_close(ours, theirs, equal_nan=True, **TOLERANCE[dtype])


@pytest.mark.parametrize("info", [info for info in infos if info.error_inputs_func], ids=lambda info: info.name)
def test_error_inputs(device: str, info: object) -> None:
    with normext.enabled():
        for error in info.error_inputs(device):
            sample = error.sample_input
            with pytest.raises(error.error_type, match=error.error_regex):
                info.op(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("info", modules, ids=lambda info: info.name.removeprefix("nn."))
def test_modules(device: str, info: object) -> None:
    for training in (True, False):
        for sample in info.module_inputs_func(
            info, device=device, dtype=torch.float64, requires_grad=True, training=training
        ):
            given = sample.constructor_input
            module = info.module_cls(*given.args, **{"device": device, "dtype": torch.float64, **given.kwargs})

            def step(module: nn.Module = module, sample: object = sample, training: bool = training) -> list[Tensor]:
                module = copy.deepcopy(module).train(training)
                found = run(module, copy.deepcopy(list(sample.forward_input.args)), sample.forward_input.kwargs)
                return [*found, *(p.grad for p in module.parameters()), *module.buffers()]

            theirs, ours = both(step)
            assert layout(ours) == layout(theirs)
            torch.testing.assert_close(ours, theirs, equal_nan=True, **TOLERANCE[torch.float64])


# What is saved between forward and backward


def saved(x: Tensor, p: torch.dtype, device: str) -> dict[str, tuple[Callable, Callable]]:
    """Operators of a dtype: the forward one, and the backward one over what it returned."""
    row, per_channel = torch.ones(8, dtype=p, device=device), torch.ones(3, dtype=p, device=device)
    mean, var = running(3, p, device)
    dy, mask = values(*x.shape, dtype=x.dtype, device=device), [True] * 3
    cases = {
        "layer_norm": (
            lambda: aten.native_layer_norm(x, [8], row, row, 1e-5),
            lambda o: aten.native_layer_norm_backward(dy, x, [8], *o[1:], row, row, mask),
        )
    }
    if p == x.dtype:
        cases["rms_norm"] = (lambda: F.rms_norm(x, [8], row), lambda o: o)
    for training in (True, False):

        def batch_norm(training: bool = training) -> tuple[Tensor, ...]:
            buffers = mean.clone(), var.clone()
            return *aten.native_batch_norm(x, per_channel, None, *buffers, training, 0.3, 1e-5), *buffers

        cases[f"batch_norm, {training}"] = (
            batch_norm,
            lambda o, t=training: aten.native_batch_norm_backward(dy, x, per_channel, *o[3:], *o[1:3], t, 1e-5, mask),
        )
    cases["no_stats"] = (
        lambda: aten._native_batch_norm_legit.no_stats(x, None, None, True, 0.1, 1e-5),
        lambda o: aten.native_batch_norm_backward(dy, x, None, None, None, *o[1:], True, 1e-5, mask),
    )
    cases["with_update"] = (
        lambda: aten._batch_norm_with_update(x, per_channel, None, mean.clone(), var.clone(), 0.1, 1e-5),
        lambda o: aten.batch_norm_backward(dy, x, per_channel, mean, var, *o[1:3], True, 1e-5, mask, o[3]),
    )
    for affine in (per_channel, None):
        cases[f"group_norm, {affine is not None}"] = (
            lambda a=affine: aten.native_group_norm(x, a, a, 5, 3, 8, 1, 1e-5),
            lambda o, a=affine: aten.native_group_norm_backward(
                dy, x, *o[1:], a, 5, 3, 8, 1, [True, a is not None, a is not None]
            ),
        )
    return cases


@pytest.mark.parametrize(("dtype", "parameters"), DTYPE_PAIRS, ids=dtype_name)
def test_saved_statistics(device: str, dtype: torch.dtype, parameters: torch.dtype) -> None:
    """Each has torch's shape and dtype, and either backward is right over either forward."""
    for forward, backward in saved(values(5, 3, 8, dtype=dtype, device=device), parameters, device).values():
        theirs, ours = both(forward)
        if isinstance(ours, tuple):
            assert layout(ours) == layout(theirs)
        torch.testing.assert_close(ours, theirs, **TOLERANCE[dtype])
        expected, crossed = backward(theirs), backward(ours)
        with normext.enabled():
            again, crossed_too = backward(ours), backward(theirs)
        for found in (crossed, again, crossed_too):
            assert layout(found) == layout(expected)
            torch.testing.assert_close(found, expected, **TOLERANCE[dtype])


def losses(device: str) -> list[tuple[Tensor, list[Tensor]]]:
    """Graphs that have been made, the same in every call, and what gradients are asked of."""
    torch.manual_seed(0)
    x, w = leaves(
        values(4, 3, 8, dtype=torch.float64, device=device), torch.ones(8, dtype=torch.float64, device=device)
    )
    dy = torch.linspace(-1, 1, 96, dtype=torch.float64, device=device).view(4, 3, 8)
    outputs = F.layer_norm(x, [8], w), F.rms_norm(x, [8], w), w.sum() * F.batch_norm(x, None, None, training=True)
    outputs = *outputs, F.group_norm(x, 1, w[:3], w[3:6])
    return [((output * dy).sum(), [x, w]) for output in outputs]


@pytest.mark.parametrize("first", [True, False], ids=["forward by normext", "backward by normext"])
def test_backward_of_a_graph_made_before(device: str, first: bool) -> None:
    expected = [torch.autograd.grad(*loss) for loss in losses(device)]
    with normext.enabled() if first else normext.enabled([]):
        made = losses(device)
    with normext.enabled([]) if first else normext.enabled():
        found = [torch.autograd.grad(*loss) for loss in made]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "batch_norm", "instance_norm", "group_norm", "evaluation"])
def test_derivatives_of_every_kind(device: str, norm: str) -> None:
    x, weight, bias = leaves(*(values(*s, dtype=torch.float64, device=device) for s in ((2, 3, 4), (3,), (3,))))
    row = weight.new_ones(4).requires_grad_()
    mean, var = running(3, torch.float64, device)
    function, inputs = {
        "layer_norm": (lambda x, w: F.layer_norm(x, [4], w, w), (x, row)),
        "rms_norm": (lambda x, w: F.rms_norm(x, [4], w), (x, row)),
        "batch_norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (x, weight, bias)),
        "instance_norm": (lambda x, w, b: F.instance_norm(x, None, None, w, b), (x, weight, bias)),
        "group_norm": (lambda x, w, b: F.group_norm(x, 1, w, b), (x, weight, bias)),
        "evaluation": (lambda x, w, b: F.batch_norm(x, mean, var, w, b), (x, weight, bias)),
    }[norm]
    with normext.enabled():
        assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
        assert gradgradcheck(function, inputs)


def test_func(device: str) -> None:
    x = values(3, 2, 4, dtype=torch.float64, device=device)

    def norms(x: Tensor) -> Tensor:
        per_channel = F.batch_norm(x, None, None, training=True) + F.group_norm(x, 1)
        return F.layer_norm(x, [4]) + F.rms_norm(x, [4]) + per_channel.sin()

    def loss(x: Tensor) -> Tensor:
        return norms(x).cos().sum()

    for transform in (func.grad(loss), func.hessian(loss), func.jacfwd(norms), func.vmap(func.grad(loss))):
        given = x[None] if isinstance(transform, type(func.vmap)) and transform.__name__ == "wrapped_vmap" else x
        theirs, ours = both(lambda t=transform, g=given: t(g))
        torch.testing.assert_close(ours, theirs)
    with forward_ad.dual_level():
        theirs, ours = both(lambda: forward_ad.unpack_dual(norms(forward_ad.make_dual(x, torch.ones_like(x)))).tangent)
    torch.testing.assert_close(ours, theirs)


# Layouts of images


@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (2, 4, 1, 1), (2, 1, 4, 4), (2, 4, 3, 2, 2), (3, 4)], ids=str)
@pytest.mark.parametrize("layout_", ["contiguous", "channels_last", "strided"])
def test_layouts_of_group_norm(device: str, shape: tuple[int, ...], layout_: str) -> None:
    x = values(*shape, dtype=torch.float64, device=device)
    if layout_ == "channels_last" and len(shape) > 2:
        x = channels_last(x)
    elif layout_ == "strided":
        x = torch.stack([x, x], -1)[..., 0]
    affine = leaves(*(values(shape[1], dtype=torch.float64, device=device) for _ in range(2)))

    def step() -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        output = F.group_norm(leaf, shape[1] if shape[1] == 1 else 2, *affine)
        grads = torch.autograd.grad(output, [leaf, *affine], torch.ones_like(x).cumsum(1))
        return [output, *grads]

    theirs, ours = both(step)
    assert layout(ours) == layout(theirs)
    torch.testing.assert_close(ours, theirs)


def test_group_norm_with_a_bias_alone() -> None:
    """Here torch has no derivative."""
    x, bias = leaves(values(2, 4, 3), values(4))
    with normext.enabled():
        output = torch.group_norm(x, 2, None, bias)
        (gradient,) = torch.autograd.grad(output, bias, torch.ones_like(output))
    torch.testing.assert_close(gradient, torch.full([4], 6.0))


# Running statistics


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics(device: str, momentum: float | None) -> None:
    def train() -> tuple[Tensor, ...]:
        module = nn.BatchNorm2d(3, momentum=momentum, device=device)
        module.running_mean = torch.zeros(6, device=device)[::2]  # strided
        for step in range(3):
            module(torch.arange(96.0, device=device).view(2, 3, 4, 4).sin() * step)
        versions = torch.tensor([module.running_mean._version, module.running_var._version])
        evaluated = module.eval()(torch.ones(1, 3, 2, 2, device=device))
        return module.running_mean, module.running_var, module.num_batches_tracked, versions, evaluated

    theirs, ours = both(train)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_instance_norm_with_running_statistics(device: str, last: bool) -> None:
    def train() -> tuple[Tensor, ...]:
        module = nn.InstanceNorm2d(3, affine=True, track_running_stats=True, device=device)
        x = torch.arange(96.0, device=device).view(2, 3, 4, 4).sin()
        output = module(channels_last(x) if last else x)
        return output, module.running_mean, module.running_var, module.eval()(x)

    theirs, ours = both(train)
    assert layout(ours) == layout(theirs)
    torch.testing.assert_close(ours, theirs)


# What normext does not take


def outcome(call: Callable) -> object:
    """What a call returns, or the error that it raises."""
    try:
        found = call()
    except Exception as error:
        return type(error), str(error)
    return list(found) if isinstance(found, tuple) else [found]


ELSEWHERE = {
    "integers": lambda: F.layer_norm(torch.ones(2, 4, dtype=torch.int64), [4]),
    "complex": lambda: F.layer_norm(torch.ones(2, 4, dtype=torch.complex64), [4]),
    "complex rms_norm": lambda: F.rms_norm(torch.arange(8.0).view(2, 4) * (1 + 1j), [4]),
    "complex batch_norm": lambda: F.batch_norm(torch.ones(2, 4, dtype=torch.complex64), None, None, training=True),
    "mixed": lambda: F.layer_norm(torch.ones(2, 4), [4], torch.ones(4, dtype=torch.float64)),
    "mixed batch_norm": lambda: F.batch_norm(torch.ones(2, 4).half(), None, None, torch.ones(4).double(), None, True),
    "half statistics": lambda: F.batch_norm(torch.ones(2, 4), torch.zeros(4).half(), torch.ones(4).half()),
    "wider weight of rms_norm": lambda: F.rms_norm(torch.randn(2, 4).bfloat16(), [4], torch.ones(4)),
    "meta": lambda: F.layer_norm(torch.ones(2, 4, device="meta"), [4]),
    "meta weight": lambda: F.layer_norm(torch.ones(2, 4), [4], torch.ones(4, device="meta")),
    "meta batch_norm": lambda: F.batch_norm(torch.ones(2, 4, device="meta"), None, None, training=True),
    "sparse": lambda: F.layer_norm(torch.ones(2, 4).to_sparse(), [4]),
    "oneDNN": lambda: F.layer_norm(torch.ones(2, 4).to_mkldnn(), [4], torch.ones(4), torch.zeros(4)).to_dense(),
    "other shape": lambda: F.layer_norm(torch.ones(2, 4), [3]),
    "other weight": lambda: F.rms_norm(torch.ones(2, 4), [4], torch.ones(3)),
    "other channels": lambda: F.batch_norm(torch.ones(2, 4), None, None, torch.ones(3), training=True),
    "no rows": lambda: F.layer_norm(torch.ones(0, 4), [4], torch.ones(4)),
    "no columns": lambda: F.rms_norm(torch.ones(3, 0), [0]),
    "one value a channel": lambda: aten.native_batch_norm(torch.ones(1, 4), None, None, None, None, True, 0.1, 1e-5),
    "one statistic": lambda: aten.native_batch_norm(
        torch.ones(2, 4), None, None, torch.ones(4), None, False, 0.1, 1e-5
    ),
    "no eps": lambda: aten.native_batch_norm(torch.randn(9, 4), None, None, None, None, True, 0.1, 0.0),
    "mixed group_norm": lambda: F.group_norm(torch.randn(2, 4), 1, torch.ones(4).double()),
    "complex group_norm": lambda: F.group_norm(torch.ones(2, 4, dtype=torch.complex64), 2),
    "meta group_norm": lambda: F.group_norm(torch.ones(2, 4, device="meta"), 2),
    "no images": lambda: F.group_norm(torch.ones(0, 4, 3), 2, torch.ones(4), torch.zeros(4)),
    "no pixels": lambda: torch.group_norm(torch.ones(2, 4, 0), 2, torch.ones(4), torch.zeros(4)),
    "groups": lambda: F.group_norm(torch.ones(2, 4, 3), 3),
    "group_norm's weight": lambda: torch.group_norm(torch.ones(2, 4, 3), 2, torch.ones(3)),
    "not contiguous": lambda: aten.native_group_norm(torch.randn(2, 3, 4).mT, None, None, 2, 4, 3, 2, 1e-5),
    "one row": lambda: aten.native_group_norm(torch.randn(2, 12), None, None, 2, 4, 3, 2, 1e-5),
    "statistics of group_norm": lambda: aten.native_group_norm_backward(
        torch.ones(2, 4), torch.ones(2, 4), torch.ones(1, 1), torch.ones(2, 1), None, 2, 4, 1, 1, [True, False, False]
    ),
    "one dimension": lambda: aten.native_batch_norm(torch.ones(4), None, None, None, None, True, 0.1, 1e-5),
    "out": lambda: torch.native_layer_norm(torch.ones(2, 4), [4], None, None, 1e-5),
    "other statistics": lambda: aten.native_layer_norm_backward(
        torch.ones(2, 4), torch.ones(2, 4), [4], torch.ones(1, 1), torch.ones(2, 1), torch.ones(4), None, [True] * 3
    ),
}


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
@pytest.mark.parametrize("case", ELSEWHERE)
def test_the_rest_is_torchs(case: str) -> None:
    def seeded() -> object:
        torch.manual_seed(0)
        return outcome(ELSEWHERE[case])

    theirs, ours = both(seeded)
    if isinstance(theirs, list):
        assert layout(ours) == layout(theirs)
        if theirs[0].device.type != "meta":
            torch.testing.assert_close(ours, theirs, equal_nan=True)
    else:
        assert ours == theirs
