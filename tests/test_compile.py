"""What compilers and exporters see: schemas, shape functions, traced graphs, whole modules."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from cases import CASES, MODULES, Case
from inputs import channels_last, running, values
from torch import Tensor, func
from torch._dynamo import compiled_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

import normext
from normext.activations import parts

ops = torch.ops.normext
EPS = 1e-5
cases = pytest.mark.parametrize("case", CASES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(autouse=True)
def fresh() -> None:
    """No graph of one test is found by another."""
    torch.compiler.reset()


# opcheck: schema, autograd registration, shape functions, tracing with static and dynamic shapes


def operator_calls(case: Case, inputs: tuple[Tensor, ...]) -> dict[str, tuple]:
    """Each operator of the case's norm, with arguments for it."""
    x, *_ = inputs
    grad_output, mask = torch.ones_like(x).detach(), [True, *case.affine]
    if case.adds or case.adapts:
        return fused_calls(case, inputs, grad_output)
    if case.norm == "rms_norm":
        weight, mask = case.arguments(*inputs)[2], [True, case.affine[0]]
        with torch.no_grad():
            _, rstd = ops.rms_norm_forward(x, [3, 5], weight, EPS)
        return {
            "rms_norm": case.arguments(*inputs),
            "rms_norm_forward": (x, [3, 5], weight, EPS, 1.0 if case.affine[0] else 0.0),
            "rms_norm_backward": (grad_output, x, [3, 5], rstd, weight, EPS, mask),
        }
    weight, bias = case.arguments(*inputs)[3:5] if case.norm == "batch_norm" else case.arguments(*inputs)[-2:]
    if case.norm == "layer_norm":
        with torch.no_grad():
            _, mean, rstd = ops.layer_norm_forward(x, [3, 5], weight, bias, EPS)
        return {
            "layer_norm": case.arguments(*inputs),
            "layer_norm_forward": (x, [3, 5], weight, bias, EPS),
            "layer_norm_backward": (grad_output, x, [3, 5], mean, rstd, weight, EPS, mask),
        }
    if case.operator == "group_norm":
        groups = 2 if case.norm == "group_norm" else x.shape[1]
        after = parts(case.activation)
        with torch.no_grad():
            _, mean, rstd, _ = ops.group_norm_forward(x, groups, weight, bias, EPS, *after)
        return {
            case.norm: case.arguments(*inputs),
            "group_norm_forward": (x, groups, weight, bias, EPS, *after),
            "group_norm_backward": (grad_output, x, groups, mean, rstd, weight, bias, EPS, mask, *after),
        }
    stats, after = case.statistics(x), parts(case.activation)
    residual = inputs[1] if case.residual else None
    with torch.no_grad():
        _, mean, rstd, _ = ops.batch_norm_forward(x, *stats, weight, bias, case.training, EPS)
    calls = {
        "batch_norm": case.arguments(*inputs),
        "batch_norm_forward": (x, *stats, weight, bias, case.training, EPS, residual, *after),
        "batch_norm_backward": (grad_output, x, mean, rstd, weight, case.training, EPS, mask),
    }
    if case.activation is None:
        return calls
    given = (grad_output, x, mean, rstd, weight, bias, residual, case.training, EPS, [*mask, case.residual], *after)
    return {**calls, "batch_norm_activation_backward": given}


def fused_calls(case: Case, inputs: tuple[Tensor, ...], grad_output: Tensor) -> dict[str, tuple]:
    """The same of norms that add a residual, and of adaptive ones."""
    x, given, *_ = inputs
    centered, mask = "layer" in case.norm, [True, False, *case.affine]
    if case.adapts:
        scale, shift = (None if t is None else t.detach().unsqueeze(1) for t in case.arguments(*inputs)[1:3])
        with torch.no_grad():
            _, mean, rstd = ops.adaptive_norm_forward(x, scale, shift, EPS, centered)
        backward = (grad_output, x, mean, rstd, scale, EPS, [True, *case.affine], centered)
        forward = (x, scale.requires_grad_(), shift, EPS, centered)
    else:
        weight, bias = (*inputs[2:], None)[:2]
        forward = (x, given, [3, 5], weight, bias, EPS, 0.0, centered)
        with torch.no_grad():
            _, total, mean, rstd = ops.add_norm_forward(*forward)
        backward = (grad_output, grad_output, total, [3, 5], mean, rstd, weight, EPS, mask, 0.0, centered)
    return {
        case.norm: case.arguments(*inputs),
        f"{case.operator}_forward": forward,
        f"{case.operator}_backward": backward,
    }


@cases
def test_opcheck(device: str, case: Case) -> None:
    for name, arguments in operator_calls(case, case.inputs(device, torch.float32)).items():
        opcheck(getattr(ops, name).default, arguments)
        detached = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
        opcheck(getattr(ops, name).default, detached, test_utils=("test_schema", "test_faketensor"))


def test_opcheck_of_mixed_dtypes(device: str) -> None:
    x = values(4, 3, 5, dtype=torch.bfloat16, device=device).requires_grad_()
    weight, channel = torch.ones(5, device=device).requires_grad_(), torch.ones(3, device=device).requires_grad_()
    opcheck(ops.layer_norm.default, (x, [5], weight, weight))
    opcheck(ops.batch_norm.default, (x, None, None, channel, channel, True))
    opcheck(ops.add_rms_norm.default, (x, values(4, 3, 5, device=device).requires_grad_(), [5], weight))
    scale = values(4, 30, device=device)[:, 5:10].requires_grad_()
    opcheck(ops.adaptive_layer_norm.default, (x, scale, scale))


def test_opcheck_of_running_statistics(device: str) -> None:
    mean, var = running(3, device=device)
    opcheck(ops.batch_norm_update_stats.default, (*running(3, device=device), mean, var, 20, 0.1))
    x = values(4, 3, 5, device=device).requires_grad_()
    weight = torch.ones(3, device=device, requires_grad=True)
    opcheck(ops.batch_norm.default, (x, mean, var, weight, weight, True, 0.1, EPS))


@pytest.mark.parametrize("operator", ["layer_norm", "rms_norm", "add_norm", "adaptive_norm", "batch_norm"])
def test_functional_operators_are_pure(operator: str) -> None:
    for name in (f"{operator}_forward", f"{operator}_backward"):
        assert not getattr(ops, name).default._schema.is_mutable
    assert ops.batch_norm.default._schema.is_mutable  # and says so: aten's hides it (pytorch#73050)


# Shape functions: sizes, strides, dtypes and devices as the kernels give them

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": channels_last,
    "permuted": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "sliced": lambda x: x[:, :, :, 1:],
    "expanded": lambda x: x[:1].expand_as(x),
    "empty": lambda x: x[:0],
    "1x1": lambda x: channels_last(x[:, :, :1, :1]),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def assert_same_metadata(fake: object, real: object) -> None:
    """Everything but the values."""
    for f, r in zip(fake, real, strict=True):
        if isinstance(r, Tensor):
            assert (f.shape, f.dtype, f.device) == (r.shape, r.dtype, r.device)
            steps = ([s for n, s in zip(t.shape, t.stride(), strict=True) if n > 1] for t in (f, r))
            assert next(steps) == next(steps)
        else:
            assert f == r


@layouts
@dtypes
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_fake_batch_norm(device: str, training: bool, dtype: torch.dtype, layout: Callable) -> None:
    x = layout(values(2, 3, 4, 5, dtype=dtype, device=device))
    channel = torch.ones(3, device=device)  # parameters and statistics
    grad_output = torch.ones(x.shape, dtype=dtype, device=device)
    arguments = (x, channel, channel, channel, channel, training, EPS)
    real = ops.batch_norm_forward(*arguments)
    backward = (grad_output, x, *real[1:3], channel, training, EPS, [True, True, True])
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert_same_metadata(ops.batch_norm_forward(*arguments), real)
    real = ops.batch_norm_backward(*backward)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert_same_metadata(ops.batch_norm_backward(*backward), real)


@layouts
@dtypes
def test_fake_rms_norm(device: str, dtype: torch.dtype, layout: Callable) -> None:
    x = layout(values(2, 3, 4, 5, dtype=dtype, device=device))
    weight = torch.ones(x.shape[2:], device=device)
    arguments = (x, weight.shape, weight, EPS)
    output, rstd = ops.rms_norm_forward(*arguments)
    backward = (torch.ones_like(output), x, weight.shape, rstd, weight, EPS, [True, True])
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert_same_metadata(ops.rms_norm_forward(*arguments), (output, rstd))
    real = ops.rms_norm_backward(*backward)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert_same_metadata(ops.rms_norm_backward(*backward), real)


@layouts
@dtypes
def test_fake_layer_norm(device: str, dtype: torch.dtype, layout: Callable) -> None:
    x = layout(values(2, 3, 4, 5, dtype=dtype, device=device))
    weight = torch.ones(x.shape[2:], device=device)
    grad_output = torch.ones(x.shape, dtype=dtype, device=device)
    arguments = (x, weight.shape, weight, weight, EPS)
    real = ops.layer_norm_forward(*arguments)
    backward = (grad_output, x, weight.shape, *real[1:], weight, EPS, [True, True, True])
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert_same_metadata(ops.layer_norm_forward(*arguments), real)
    real = ops.layer_norm_backward(*backward)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert_same_metadata(ops.layer_norm_backward(*backward), real)


@cases
def test_meta_tensors(case: Case) -> None:
    inputs = tuple(t.detach().to("meta") for t in case.inputs("cpu"))
    assert case.ours(*inputs).shape == inputs[0].shape
    assert case.ours(*inputs).is_meta


@cases
@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
def test_make_fx(device: str, tracing: str, case: Case) -> None:
    inputs = tuple(t.detach() for t in case.inputs(device))

    def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
        tensors = tuple(t.detach().requires_grad_() for t in tensors)
        return torch.autograd.grad(case.ours(*tensors).sin().sum(), tensors)

    traced = make_fx(gradient, tracing_mode=tracing)(*inputs)
    inputs = case.doubled(*inputs) if tracing == "symbolic" else inputs
    torch.testing.assert_close(traced(*inputs), gradient(*inputs))


# torch.compile: the same numbers, buffers and gradients as without it

modules = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def check_compiled(module: torch.nn.Module, shapes: list[list[int]], device: str, **options: object) -> None:
    """Runs both on an input of each shape in turn, and compares everything after each."""
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)  # the layers around a norm are torch's own
    module = module.to(device)
    twin = copy.deepcopy(module)
    compiled = torch.compile(twin, fullgraph=True, **options)
    for shape in shapes:
        x = values(*shape, device=device)
        inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
        outputs = module(inputs[0]), compiled(inputs[1])
        close(outputs[1], outputs[0])
        for y in outputs:
            y.square().sin().sum().backward()
        close(inputs[1].grad, inputs[0].grad)
        close([p.grad for p in twin.parameters()], [p.grad for p in module.parameters()])
        close(dict(twin.named_buffers()), dict(module.named_buffers()))


@modules
@modes
def test_compile(device: str, training: bool, make: Callable) -> None:
    module, shape = make()
    check_compiled(module.train(training), [shape, shape], device, backend="aot_eager")


@pytest.mark.parametrize("name", ["LayerNorm", "BatchNorm1d", "BatchNorm2d"])
@modes
def test_compile_once_for_every_batch(device: str, training: bool, name: str) -> None:
    module, shape = MODULES[name]()
    shapes = [[n, *shape[1:]] for n in (4, 7, 9)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        check_compiled(module.train(training), shapes, device, backend="aot_eager", dynamic=True)


def network() -> torch.nn.Module:
    """Both norms among other layers."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        normext.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Flatten(1),
        torch.nn.LazyLinear(8),
        normext.LayerNorm(8),
    )


@modes
def test_inductor(device: str, training: bool) -> None:
    module = network()
    module(torch.randn(2, 3, 6, 6))
    check_compiled(module.train(training), [[4, 3, 6, 6], [4, 3, 6, 6]], device, backend="inductor")


def test_inductor_keeps_channels_last(device: str) -> None:
    module = normext.BatchNorm2d(3, device=device)
    x = channels_last(torch.randn(2, 3, 4, 5, device=device))
    assert torch.compile(module, fullgraph=True)(x).is_contiguous(memory_format=torch.channels_last)


def test_inductor_may_choose_the_layout() -> None:
    """Its convolutions are channels_last on the CPU: to keep the layout that was traced is a copy of each input."""
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("normext::")]
    operators = [torch._C._get_operation_overload(name, "")[2] for name in names]  # with their tags
    assert len(names) > 30
    assert all(torch.Tag.flexible_layout in tags for tags in operators)


# torch.func inside what is compiled


def loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A scalar of the function that no input enters linearly."""
    return lambda *inputs: function(*inputs).sin().square().sum()


INSIDE = {
    "grad": lambda f, x: func.grad(loss(f), tuple(range(len(x))))(*x),
    "vjp": lambda f, x: func.vjp(f, *x)[1](x[0].cos()),
    "jvp": lambda f, x: func.jvp(f, x, tuple(t.cos() for t in x)),
    "grad of grad": lambda f, x: func.grad(lambda *y: func.grad(loss(f))(*y).sin().sum())(*x),
    "hessian": lambda f, x: func.hessian(loss(f))(*x),
    "vmap": lambda f, x: func.vmap(f)(*(torch.stack([t, t.sin()]) for t in x)),
    "vmap of grad": lambda f, x: func.vmap(func.grad(loss(f)))(*(torch.stack([t, t.sin()]) for t in x)),
    "grad of vmap": lambda f, x: func.grad(loss(func.vmap(f)))(*(torch.stack([t, t.sin()]) for t in x)),
}


@pytest.mark.parametrize("case", [case for case in CASES if all(case.affine)], ids=str)
@pytest.mark.parametrize("transform", INSIDE.values(), ids=INSIDE.keys())
def test_compile_of_transforms(device: str, transform: Callable, case: Case) -> None:
    inputs = tuple(t.detach() for t in case.inputs(device))

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        return transform(case.ours, inputs)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), function(*inputs))


@pytest.mark.parametrize("transform", ["grad", "vmap", "vmap of grad"])
def test_compiled_transforms_update_running_statistics(device: str, transform: str) -> None:
    def step(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return normext.batch_norm(x, mean, var, training=True, momentum=0.3).sin().sum()

    apply = {"grad": func.grad, "vmap": func.vmap, "vmap of grad": lambda f: func.vmap(func.grad(f))}[transform]
    x = values(2, 4, 3, 5, device=device)
    statistics = torch.randn(2, 3, device=device), torch.rand(2, 3, device=device)
    if transform == "grad":
        x, *statistics = x[0], *(t[0] for t in statistics)
    twins = [t.clone() for t in statistics]
    compiled = torch.compile(lambda *a: apply(step)(*a), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, *twins), apply(step)(x, *statistics))
    torch.testing.assert_close(twins, list(statistics))


# torch.export


@modules
@modes
def test_export_with_a_dynamic_batch(device: str, training: bool, make: Callable) -> None:
    module, shape = make()
    module = module.to(device).train(training)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(module, (values(*shape, device=device),), dynamic_shapes=({0: batch},))
    for n in (3, 8):
        x = values(n, *shape[1:], device=device)
        twin = copy.deepcopy(module)
        exported = program.module()
        exported.load_state_dict(twin.state_dict())
        torch.testing.assert_close(exported(x), twin(x))
        torch.testing.assert_close(dict(exported.named_buffers()), dict(twin.named_buffers()))


def test_export_and_compile(device: str) -> None:
    module = network()
    module(torch.randn(2, 3, 6, 6))
    module = module.to(device).eval()
    x = torch.randn(5, 3, 6, 6, device=device)
    program = torch.export.export(module, (x,)).run_decompositions()
    torch.testing.assert_close(program.module()(x), module(x))


# compiled autograd: the graph that a forward pass in eager mode has left, compiled


@cases
def test_compiled_autograd(device: str, case: Case) -> None:
    compiler = torch.compile(backend="aot_eager")
    for scale in (1.0, 2.0):  # the second call finds the graph of the first, and must not find its numbers
        inputs = case.inputs(device)
        grad_output = torch.full_like(inputs[0], scale).detach()
        expected = torch.autograd.grad(case.ours(*inputs).sin(), inputs, grad_output)
        output = case.ours(*inputs).sin()
        with compiled_autograd._enable(compiler):
            output.backward(grad_output)
        torch.testing.assert_close(tuple(t.grad for t in inputs), expected)


def test_compiled_autograd_tells_options_apart(device: str) -> None:
    compiler = torch.compile(backend="aot_eager")
    mean, var = running(3, device=device)
    for training, eps in ((False, 1e-5), (True, 1e-5), (True, 10.0)):
        x = values(4, 3, 5, device=device).requires_grad_()
        call = partial(normext.batch_norm, x, mean.clone(), var.clone(), training=training, eps=eps)
        (expected,) = torch.autograd.grad(call().sin().sum(), x)
        output = call().sin().sum()
        with compiled_autograd._enable(compiler):
            output.backward()
        torch.testing.assert_close(x.grad, expected)


# Sizes that only the data will tell: checked when the program runs


def unbacked(x: Tensor, size: Tensor, norm: str, training: bool) -> Tensor:
    """A norm over as many values as ``size`` says."""
    n = size.item()
    if norm == "rows":
        return normext.layer_norm(x, (n,), torch.ones(n), torch.ones(n))
    if norm == "channels":
        return normext.batch_norm(x, torch.zeros(n), torch.ones(n), torch.ones(n), torch.ones(n), training)
    return normext.batch_norm(torch.ones(n, 3) * x[0, 0], torch.zeros(3), torch.ones(3), training=training)


class Unbacked(torch.nn.Module):
    """:func:`unbacked` as torch.export wants it."""

    def __init__(self, norm: str, training: bool) -> None:
        super().__init__()
        self.options = norm, training

    def forward(self, x: Tensor, size: Tensor) -> Tensor:
        """Takes [4, n], and n as a tensor."""
        return unbacked(x, size, *self.options)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["rows", "channels", "batch"])
def test_export_of_sizes_in_tensors(norm: str, training: bool) -> None:
    x, size = values(4, 8), torch.tensor(8)
    exported = torch.export.export(Unbacked(norm, training), (x, size)).module()
    torch.testing.assert_close(exported(x, size), unbacked(x, size, norm, training))
    if norm != "batch":
        with pytest.raises(RuntimeError):
            exported(x, torch.tensor(7))


# What is refused elsewhere is refused here


@pytest.mark.parametrize("training", [1, 0, None])
def test_training_is_a_bool(training: object) -> None:
    x, stats = values(4, 3), running(3)
    message = r"batch_norm\(\): argument 'training' \(position 6\) must be bool"
    with pytest.raises(TypeError, match=message):
        make_fx(lambda x: normext.batch_norm(x, *stats, training=training))(x)
    with pytest.raises(Exception, match=message):
        torch.compile(lambda x: normext.batch_norm(x, *stats, training=training), backend="eager", fullgraph=True)(x)


@pytest.mark.parametrize(
    ("norm", "arguments", "message"),
    [
        ("layer_norm", ([5], torch.ones(1)), "Expected weight to be of same shape as normalized_shape"),
        ("layer_norm", ([5], torch.ones(5).double()), "mixed dtype"),
        ("batch_norm", (torch.zeros(1), torch.ones(3)), "running_mean should contain 3 elements not 1"),
        ("batch_norm", (torch.zeros(3), None, None, None, True), "must either both be None or neither be None"),
        ("batch_norm", (torch.zeros(3), torch.ones(3), None, None, False, 0.1, -1.0), "eps must be non-negative"),
    ],
)
def test_arguments_are_checked_under_compiled_transforms(norm: str, arguments: tuple, message: str) -> None:
    def gradient(x: Tensor) -> Tensor:
        return func.grad(lambda x: getattr(normext, norm)(x, *arguments).sum())(x)

    for transform in (gradient, func.vmap(gradient)):
        x = values(4, 3, 5) if transform is gradient else values(2, 4, 3, 5)
        with pytest.raises(Exception, match=message):
            torch.compile(transform, backend="eager", fullgraph=True)(x)
