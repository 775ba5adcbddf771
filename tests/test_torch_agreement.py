"""torch as second opinion: its own sample inputs, error inputs and module inputs, given to both."""

import copy
import inspect
import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from inputs import DTYPES, HALF, dtype_name, values, without_bias
from torch import Tensor, func
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

import normext

ops = torch.ops.normext
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)

# Half tensors are compared with torch's float32 kernels, since torch's half kernels round the statistics too. What is
# left: one rounding of the result; and in wider dtypes torch's own errors in sums of up to a hundred numbers up to ten.
ULPS = {torch.float64: 4096, torch.float32: 4096, torch.bfloat16: 4, torch.float16: 4}
TOLERANCE = {dtype: dict.fromkeys(("rtol", "atol"), ulps * torch.finfo(dtype).eps) for dtype, ulps in ULPS.items()}


def widened(value: object) -> object:
    """Half tensors as float32, all else as it is: what torch is asked about."""
    half = isinstance(value, Tensor) and value.dtype in HALF
    return value.detach().float().requires_grad_(value.requires_grad) if half else value


def native_batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, training: bool, momentum: float, eps: float
) -> tuple[Tensor, ...]:
    """torch.native_batch_norm over normext's operators."""
    output, batch_mean, rstd, batch_var = ops.batch_norm_forward(x, mean, var, weight, bias, training, eps)
    if training and mean is not None:
        ops.batch_norm_update_stats(mean, var, batch_mean, batch_var, x.numel() // x.shape[1], momentum)
    return (output, batch_mean, rstd) if training else (output, mean.new_empty(0), mean.new_empty(0))


OURS = {
    "nn.functional.layer_norm": normext.layer_norm,
    "nn.functional.rms_norm": normext.rms_norm,
    "nn.functional.batch_norm": normext.batch_norm,
    "nn.functional.group_norm": normext.group_norm,
    "nn.functional.instance_norm": normext.instance_norm,
    "native_layer_norm": ops.layer_norm_forward,
    "native_batch_norm": native_batch_norm,
}
OP_INFOS = [info for info in op_db if info.name in OURS and not info.variant_test_name]
MODULE_INFOS = [info for info in module_db if hasattr(normext, info.module_cls.__name__)]
infos = pytest.mark.parametrize("info", OP_INFOS, ids=lambda info: info.name)
module_infos = pytest.mark.parametrize("info", MODULE_INFOS, ids=lambda info: info.module_cls.__name__)


def test_torch_still_has_the_samples() -> None:
    assert {info.name for info in OP_INFOS} == set(OURS)
    assert len(MODULE_INFOS) == 9


def on_cpu(argument: object) -> object:
    """A leaf there, if it is a tensor."""
    if not isinstance(argument, Tensor):
        return argument
    return argument.detach().cpu().requires_grad_(argument.requires_grad)


def slope(like: Tensor) -> Tensor:
    """A gradient of every size from -1 to 1."""
    return torch.linspace(-1, 1, like.numel()).view_as(like).to(like)


def run(function: Callable, arguments: list, options: dict) -> list[Tensor]:
    """Outputs, what became of the arguments, and the gradients of all that want one."""
    outputs = function(*arguments, **options)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    tensors = [t for t in arguments if isinstance(t, Tensor)]
    wanting = [t for t in tensors if t.requires_grad]
    if outputs[0].numel() and wanting:
        outputs[0].backward(slope(outputs[0]))
    return outputs + tensors + [t.grad for t in wanting if t.grad is not None]


@infos
@dtypes
def test_samples(device: str, dtype: torch.dtype, info: object) -> None:
    """Torch computes on the CPU: on a GPU its native_batch_norm returns other things in evaluation."""
    for sample in info.sample_inputs(device, dtype, requires_grad=True):
        arguments = [sample.input, *sample.args]
        theirs = run(
            info.op,
            copy.deepcopy([on_cpu(widened(a)) for a in arguments]),
            {name: on_cpu(widened(value)) for name, value in sample.kwargs.items()},
        )
        ours = run(OURS[info.name], copy.deepcopy(arguments), sample.kwargs)
        assert ours[0].dtype == dtype
        torch.testing.assert_close(
            ours, theirs, equal_nan=True, check_dtype=False, check_device=False, **TOLERANCE[dtype]
        )


def test_error_inputs(device: str) -> None:
    (info,) = (info for info in OP_INFOS if info.name == "native_layer_norm")
    for error in info.error_inputs(device):
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            ops.layer_norm_forward(sample.input, *sample.args)
        with pytest.raises(error.error_type, match=error.error_regex):
            normext.layer_norm(sample.input, *sample.args)


# What torch has as several operations, on the samples of the norm among them: by name, that norm, what to make of the
# arguments of its samples, and the operations. A sum of equal terms is exact in half types, too.


def add_by_hand(norm: Callable) -> Callable:
    """A residual, then the norm."""

    def add_norm(x: Tensor, residual: Tensor, *arguments: object, **options: object) -> tuple[Tensor, Tensor]:
        total = x + residual
        return norm(total, *arguments, **options), total

    return add_norm


def adaptive_by_hand(norm: Callable) -> Callable:
    """The norm, then a scale and a shift of the first dimensions."""

    def adaptive_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        shape = [*scale.shape[:-1], *[1] * (x.dim() - scale.dim()), scale.shape[-1]]
        return norm(x, x.shape[-1:], eps=1e-5) * (1 + scale.view(shape)) + shift.view(shape)

    return adaptive_norm


def with_residual(x: Tensor, *arguments: object) -> list[object]:
    """The residual is what the input is."""
    return [x, x.detach().clone().requires_grad_(x.requires_grad), *arguments]


def with_modulation(x: Tensor, *_: object) -> list[object]:
    """Parts of the input: for each sample where there are samples, for each token where there are no more."""
    parts = x.detach()[(slice(None), *[0] * (x.dim() - 2))] if x.dim() > 1 else x.detach()
    return [x, *(part.clone().requires_grad_(x.requires_grad) for part in (parts, -parts))]


FUSED = {
    "add_layer_norm": (F.layer_norm, with_residual, add_by_hand),
    "add_rms_norm": (F.rms_norm, with_residual, add_by_hand),
    "adaptive_layer_norm": (F.layer_norm, with_modulation, adaptive_by_hand),
    "adaptive_rms_norm": (F.rms_norm, with_modulation, adaptive_by_hand),
}


@pytest.mark.parametrize("name", FUSED)
@dtypes
def test_samples_of_fused_norms(device: str, dtype: torch.dtype, name: str) -> None:
    norm, given, by_hand = FUSED[name]
    (info,) = (info for info in OP_INFOS if info.name == f"nn.functional.{norm.__name__}")
    fused = getattr(normext, name)
    for sample in info.sample_inputs(device, dtype, requires_grad=True):
        arguments = given(sample.input, *sample.args)
        options = sample.kwargs if given is with_residual else {"eps": 1e-5}
        theirs = run(
            by_hand(norm),
            copy.deepcopy([on_cpu(widened(a)) for a in arguments]),
            {name: on_cpu(widened(value)) for name, value in sample.kwargs.items()} if given is with_residual else {},
        )
        ours = run(fused, copy.deepcopy(arguments), options)
        assert ours[0].dtype == dtype
        torch.testing.assert_close(
            ours, theirs, equal_nan=True, check_dtype=False, check_device=False, **TOLERANCE[dtype]
        )


def test_error_inputs_with_a_residual(device: str) -> None:
    (info,) = (info for info in OP_INFOS if info.name == "native_layer_norm")
    for error in info.error_inputs(device):
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            normext.add_layer_norm(*with_residual(sample.input, *sample.args))


# Errors: arguments that torch refuses, and the part of its message to be found in ours


def image(**options: object) -> Tensor:
    """The input of the calls below: [2, 3, 4]."""
    return torch.randn(2, 3, 4, **options)


ERRORS = {
    "ln: no dimension": ("layer_norm", lambda: (image(), []), "Expected normalized_shape to be at least 1-dimensional"),
    "ln: other size": (
        "layer_norm",
        lambda: (image(), [3]),
        r"Given normalized_shape=\[3\], expected input with shape",
    ),
    "ln: other sizes": ("layer_norm", lambda: (image(), [4, 4]), r"but got input of size\[2, 3, 4\]"),
    "ln: more dimensions": ("layer_norm", lambda: (image(), [1, 2, 3, 4]), r"Given normalized_shape=\[1, 2, 3, 4\]"),
    "ln: weight size": (
        "layer_norm",
        lambda: (image(), [4], torch.ones(3)),
        r"Expected weight to be of same shape as normalized_shape, but got weight of shape \[3\]",
    ),
    "ln: weight dimensions": (
        "layer_norm",
        lambda: (image(), [3, 4], torch.ones(12)),
        "Expected weight to be of same shape as normalized_shape",
    ),
    "ln: bias size": (
        "layer_norm",
        lambda: (image(), [4], None, torch.ones(3)),
        r"Expected bias to be of same shape as normalized_shape, but got bias of shape \[3\]",
    ),
    "ln: integers": ("layer_norm", lambda: (torch.ones(2, 4, dtype=torch.int), [4]), "[Ii]nt"),
    "ln: complex": ("layer_norm", lambda: (image(dtype=torch.cfloat), [4]), "[Cc]omplex"),
    "ln: wider weight": ("layer_norm", lambda: (image(), [4], torch.ones(4).double()), "(?i)(expect|got).*(float)"),
    "ln: half weight": ("layer_norm", lambda: (image(), [4], torch.ones(4).half()), "(?i)(expect|got).*(float)"),
    "ln: other half": (
        "layer_norm",
        lambda: (image(dtype=torch.bfloat16), [4], torch.ones(4).half()),
        "(?i)(expect|got).*(float)",
    ),
    "ln: two dtypes": (
        "layer_norm",
        lambda: (image(dtype=torch.bfloat16), [4], torch.ones(4), torch.ones(4).bfloat16()),
        "(?i)(expect|got).*(float)",
    ),
    "ln: a list": ("layer_norm", lambda: ([1.0, 2.0], [2]), "Tensor"),
    "rms: no dimension": ("rms_norm", lambda: (image(), []), "Expected normalized_shape to be at least 1-dimensional"),
    "rms: other size": ("rms_norm", lambda: (image(), [3]), r"Given normalized_shape=\[3\], expected input with shape"),
    "rms: more dimensions": (
        "rms_norm",
        lambda: (image(), [1, 2, 3, 4]),
        "Input tensor must have at least 4 dimensions, but got 3",
    ),
    "rms: weight size": (
        "rms_norm",
        lambda: (image(), [4], torch.ones(3)),
        r"Expected weight to be of same shape as normalized_shape, but got weight of shape \[3\]",
    ),
    "rms: integers": ("rms_norm", lambda: (torch.ones(2, 4, dtype=torch.int), [4]), "[Ii]nt"),
    "rms: a list": ("rms_norm", lambda: ([1.0, 2.0], [2]), "Tensor"),
    "bn: one value": (
        "batch_norm",
        lambda: (torch.ones(1, 3), None, None, None, None, True),
        "Expected more than 1 value",
    ),
    "bn: one value per channel": (
        "batch_norm",
        lambda: (torch.ones(1, 3, 1, 1), None, None, None, None, True),
        r"got input size torch.Size\(\[1, 3, 1, 1\]\)",
    ),
    "bn: eps of zero": (
        "batch_norm",
        lambda: (image(), None, None, None, None, True, 0.1, 0.0),
        "eps must be positive",
    ),
    "bn: negative eps": (
        "batch_norm",
        lambda: (image(), torch.zeros(3), torch.ones(3), None, None, False, 0.1, -1.0),
        "eps must be",
    ),
    "bn: no mean": (
        "batch_norm",
        lambda: (image(), None, torch.ones(3)),
        "running_mean must be defined in evaluation mode",
    ),
    "bn: no variance": (
        "batch_norm",
        lambda: (image(), torch.ones(3), None),
        "running_var must be defined in evaluation",
    ),
    "bn: half of the statistics": (
        "batch_norm",
        lambda: (image(), torch.zeros(3), None, None, None, True),
        "running_mean and running_var must either both be None or neither be None",
    ),
    "bn: mean size": (
        "batch_norm",
        lambda: (image(), torch.zeros(4), torch.ones(3)),
        "running_mean should contain 3 elements not 4",
    ),
    "bn: variance size": (
        "batch_norm",
        lambda: (image(), torch.zeros(3), torch.ones(4)),
        "running_var should contain 3 elements not 4",
    ),
    "bn: weight size": (
        "batch_norm",
        lambda: (image(), None, None, torch.ones(4), None, True),
        "weight should contain 3 elements not 4",
    ),
    "bn: bias size": (
        "batch_norm",
        lambda: (image(), None, None, None, torch.ones(4), True),
        "bias should contain 3 elements not 4",
    ),
    "bn: integers": (
        "batch_norm",
        lambda: (torch.ones(2, 3, dtype=torch.int), None, None, None, None, True),
        "[Ii]nt",
    ),
    "bn: wider weight": (
        "batch_norm",
        lambda: (image(), None, None, torch.ones(3).double(), None, True),
        "(?i)(expect|got).*(float)",
    ),
    "bn: half weight": (
        "batch_norm",
        lambda: (image(), None, None, torch.ones(3).half(), None, True),
        "(?i)(expect|got).*(float)",
    ),
    "bn: half statistics for float32 parameters": (
        "batch_norm",
        lambda: (image().half(), torch.zeros(3).half(), torch.ones(3).half(), torch.ones(3)),
        "(?i)(expect|got).*(float)",
    ),
}


@pytest.mark.parametrize(("name", "arguments", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(name: str, arguments: Callable[[], tuple], message: str) -> None:
    with pytest.raises(Exception, match=message) as theirs:
        getattr(F, name)(*arguments())
    with pytest.raises(theirs.type, match=message) as ours:
        getattr(normext, name)(*arguments())
    assert ours.type is theirs.type


def in_a_dual_level(function: Callable) -> None:
    """Calls the function where a forward-mode level is in force, with nothing to differentiate."""
    with forward_ad.dual_level():
        function(torch.zeros(()))


# Ways to call a function of a number that it adds to its input
SURROUNDINGS: dict[str, Callable[[Callable], object]] = {
    "grad": lambda f: func.grad(lambda t: f(t).sum())(torch.zeros(())),
    "jvp": lambda f: func.jvp(f, (torch.zeros(()),), (torch.ones(()),)),
    "vmap": lambda f: func.vmap(f)(torch.zeros(2)),
    "jvp of vmap of grad": lambda f: func.jvp(
        func.vmap(func.grad(lambda t: f(t).sum())), (torch.zeros(2),), (torch.ones(2),)
    ),
    "dual level": in_a_dual_level,
}
# What adding a number would change: complex and integer inputs are of another dtype then, lists of another type
CHECKED = {name: case for name, case in ERRORS.items() if name.split(": ")[1] not in ("integers", "complex", "a list")}


@pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS.keys())
@pytest.mark.parametrize(("name", "arguments", "message"), CHECKED.values(), ids=CHECKED.keys())
def test_errors_under_transforms(
    name: str, arguments: Callable[[], tuple], message: str, surroundings: Callable
) -> None:
    x, *rest = arguments()
    with pytest.raises(Exception) as plainly:
        getattr(normext, name)(x, *rest)
    with pytest.raises(plainly.type) as found:
        surroundings(lambda t: getattr(normext, name)(x + t.to(x.dtype), *rest))
    assert str(found.value) == str(plainly.value)


@pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS.keys())
def test_nothing_is_updated_where_arguments_are_refused(surroundings: Callable) -> None:
    x, mean, var = image(), torch.zeros(3), torch.ones(4)
    with pytest.raises(RuntimeError, match="running_var should contain 3 elements not 4"):
        surroundings(lambda t: normext.batch_norm(x + t, mean, var, training=True))
    assert torch.equal(mean, torch.zeros(3))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("transform", ["grad", "vmap of grad", "grad of vmap", "grad of jvp", "jvp of grad"])
@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_running_statistics_are_not_differentiated_by_transforms(name: str, transform: str, training: bool) -> None:
    stats, x = {"running_mean": torch.zeros(3), "running_var": torch.ones(3)}, image()

    def norm(statistic: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        return normext.batch_norm(x * scale, **{**stats, name: statistic.clone()}, training=training).sum()

    one, two, scale = stats[name], torch.ones(2, 3), (torch.ones(()),) * 2
    transforms: dict[str, Callable] = {
        "grad": lambda: func.grad(norm)(one),
        "vmap of grad": lambda: func.vmap(func.grad(norm))(two),
        "grad of vmap": lambda: func.grad(lambda s: func.vmap(norm)(s).sum())(two),
        "grad of jvp": lambda: func.grad(lambda s: func.jvp(lambda t: norm(s, t), *((t,) for t in scale))[1])(one),
        "jvp of grad": lambda: func.jvp(func.grad(norm), (one,), (one,)),
    }
    with pytest.raises(RuntimeError, match=f"not differentiable with respect to argument '{name}'"):
        transforms[transform]()


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_running_statistics_with_tangents_are_refused(name: str) -> None:
    stats, x = {"running_mean": torch.zeros(3), "running_var": torch.ones(3)}, image()

    def norm(statistic: Tensor, library: object = normext, training: bool = False) -> Tensor:
        return library.batch_norm(x + statistic.sum(), **{**stats, name: statistic}, training=training)

    one, two = torch.ones(3), torch.ones(2, 3)
    refused = [
        lambda: func.jvp(norm, (one,), (one,)),
        lambda: func.jvp(lambda s: func.grad(lambda t: (norm(s) * t).sum())(one[0]), (one,), (one,)),
        lambda: func.jvp(lambda s: func.jvp(lambda t: norm(s) * t, (one[0],), (one[0],)), (one,), (one,)),
        lambda: func.jvp(func.vmap(norm), (two,), (two,)),
        lambda: func.vmap(lambda s: func.jvp(norm, (s,), (one,)))(two),
    ]
    for call in refused:
        with pytest.raises(RuntimeError, match="they cannot have forward grad defined"):
            call()
    with pytest.raises(RuntimeError, match="they cannot have forward grad defined"):
        func.jvp(lambda s: norm(s, F), (one,), (one,))
    # In training nothing is computed from them, and torch lets them be.
    ours = func.jvp(lambda s: norm(s, normext, True), (one.clone(),), (one,))
    theirs = func.jvp(lambda s: norm(s, F, True), (one.clone(),), (one,))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 3, 0)], ids=str)
def test_empty_batch_norm_in_a_dual_level(shape: tuple[int, ...], training: bool) -> None:
    channels = shape[1] if len(shape) > 1 else 0
    x, stats, weight = torch.empty(shape), (torch.zeros(channels), torch.ones(channels)), torch.ones(channels)
    output, tangent = func.jvp(lambda t: normext.batch_norm(t, *stats, weight, weight, training), (x,), (x,))
    assert output.shape == tangent.shape == x.shape
    assert torch.equal(stats[0], torch.zeros(channels))
    (gradient,) = func.vjp(lambda t: normext.batch_norm(t, *stats, weight, weight, training), x)[1](x)
    assert gradient.shape == x.shape


# Arguments of the wrong type, in a call that is right otherwise, and what torch calls the right one
TYPES = {
    "input": ("Tensor", [[1.0, 2.0], 1]),
    "normalized_shape": ("tuple of ints", [4, None, "4", torch.tensor([4])]),
    "running_mean": ("Tensor", [1, [1.0]]),
    "running_var": ("Tensor", [1, [1.0]]),
    "weight": ("Tensor", [1, [1.0]]),
    "bias": ("Tensor", [1, [1.0]]),
    "residual": ("Tensor", [1, [1.0], None]),
    "scale": ("Tensor", [1, [1.0], None]),
    "shift": ("Tensor", [1, [1.0], None]),
    "training": ("bool", [1, 0, None, "yes", torch.tensor(True), np.bool_(True)]),
    "momentum": ("float", [None, "0.1"]),
    "eps": ("float", [None, "0.1"]),
    "weight_offset": ("float", [None, "0.1"]),
    "num_groups": ("int", [None, 2.5]),
    "use_input_stats": ("bool", [None, 1]),
    "activation": ("str", [3]),
}


@pytest.mark.parametrize("name", normext.functional.__all__)
def test_types(name: str) -> None:
    function = getattr(normext, name)
    right = {"input": image(), "normalized_shape": [4], "running_mean": torch.zeros(3), "running_var": torch.ones(3)}
    right |= {"residual": image(), "scale": torch.ones(4), "shift": torch.ones(4)}
    right["num_groups"] = 3
    right = {argument: value for argument, value in right.items() if argument in inspect.signature(function).parameters}
    for position, (argument, parameter) in enumerate(inspect.signature(function).parameters.items(), 1):
        wanted, wrong = TYPES[argument]
        where = "" if parameter.kind is parameter.KEYWORD_ONLY else rf" \(position {position}\)"
        for value in wrong:
            if value is None and parameter.default is None:
                continue
            message = rf"{name}\(\): argument '{argument}'{where} must be {wanted}, not "
            for call in (lambda f: f(None), in_a_dual_level):
                with pytest.raises(TypeError, match=message):
                    call(lambda _: function(**{**right, argument: value}))  # noqa: B023


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5)], ids=str)
def test_empty_batch_norm(shape: tuple[int, ...], memory_format: torch.memory_format, training: bool) -> None:
    x = torch.empty(shape, dtype=torch.float64).to(memory_format=memory_format)
    outputs = []
    for library in (F, normext):
        channel = torch.ones(3, requires_grad=True)  # float32: torch lets any dtypes go together here
        outputs.append(library.batch_norm(x, torch.zeros(3), torch.ones(3), channel, channel, training))
        outputs[-1].sum().backward()
        assert torch.equal(channel.grad, torch.zeros(3))
    theirs, ours = outputs
    assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_running_statistics_are_not_differentiated(name: str, training: bool) -> None:
    stats = {"running_mean": torch.zeros(3), "running_var": torch.ones(3)}
    stats[name].requires_grad_()
    for library in (F, normext):
        with pytest.raises(RuntimeError, match=f"not differentiable with respect to argument '{name}'"):
            library.batch_norm(image(), **stats, training=training)
        with torch.no_grad():
            library.batch_norm(image(), **stats, training=training)


@pytest.mark.parametrize("name", ["layer_norm", "batch_norm"])
def test_devices_must_agree(name: str) -> None:
    weight = torch.ones(4, device="meta")
    arguments = {"layer_norm": ([4], weight), "batch_norm": (None, None, weight[:3], None, True)}[name]
    for library in (F, normext):
        with pytest.raises(RuntimeError, match=r"(?i)device.*meta|meta.*device"):
            getattr(library, name)(image(), *arguments)


# Modules


def twins(info: object, module_input: object) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Normext's module and torch's, made with the same arguments."""
    arguments = module_input.constructor_input
    ours = getattr(normext, info.module_cls.__name__)(*arguments.args, **arguments.kwargs)
    return ours, info.module_cls(*arguments.args, **arguments.kwargs)


def shake(module: torch.nn.Module) -> None:
    """Parameters other than ones and zeros."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.add_(torch.linspace(-0.5, 0.5 + i, parameter.numel()).view_as(parameter))


@module_infos
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@dtypes
def test_modules(device: str, dtype: torch.dtype, training: bool, info: object) -> None:
    for sample in info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=True, training=training):
        ours, theirs = twins(info, sample)
        shake(theirs)
        ours.load_state_dict(theirs.state_dict())
        ours.to(device, dtype)
        theirs.to(device, torch.float32 if dtype in HALF else dtype)
        theirs.load_state_dict(ours.state_dict())  # its parameters, rounded
        for module, cast in ((ours, lambda x: x), (theirs, widened)):
            module.train()(cast(sample.forward_input.args[0].detach()) + 1)  # running statistics other than 0 and 1
        torch.testing.assert_close(list(ours.buffers()), list(theirs.buffers()), check_dtype=False, **TOLERANCE[dtype])
        theirs.load_state_dict(ours.state_dict())
        results = []
        for module, cast in ((ours, lambda x: x), (theirs, widened)):
            x = cast(sample.forward_input.args[0].detach().requires_grad_())
            output = module.train(training)(x)
            output.backward(slope(output))
            results.append([output, x.grad, *(p.grad for p in module.parameters()), *module.buffers()])
        assert results[0][0].dtype == dtype
        torch.testing.assert_close(*results, check_dtype=False, **TOLERANCE[dtype])
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
@dtypes
def test_modules_with_a_residual(device: str, dtype: torch.dtype, name: str) -> None:
    """As torch's module, of twice the input."""
    infos = [info for info in MODULE_INFOS if info.module_cls.__name__ == name]
    for info in infos:
        for sample in info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=True, training=True):
            theirs = twins(info, sample)[1].to(device, dtype)
            shake(theirs)
            given = sample.constructor_input
            ours = getattr(normext, f"Add{name}")(*given.args, **given.kwargs).to(device, dtype)
            ours.load_state_dict(theirs.state_dict())
            theirs.to(torch.float32 if dtype in HALF else dtype)
            x = sample.forward_input.args[0].detach()
            wide = widened(x.requires_grad_())
            output, total = ours(x, x)
            expected = theirs(wide + wide)
            for result in (output, expected):
                result.backward(slope(result))
            results = [
                [result, leaf.grad, *(p.grad for p in module.parameters())]
                for result, leaf, module in ((output, x, ours), (expected, wide, theirs))
            ]
            assert torch.equal(total, x + x)
            torch.testing.assert_close(*results, check_dtype=False, **TOLERANCE[dtype])


@module_infos
def test_module_errors(device: str, info: object) -> None:
    if info.module_error_inputs_func is None:
        pytest.skip("torch lists none")
    for error in info.module_error_inputs_func(info, device, torch.float32, requires_grad=False, training=True):
        with pytest.raises(error.error_type, match=error.error_regex):  # when it is made, or when it is called
            ours, _ = twins(info, error.module_error_input)
            ours(*error.module_error_input.forward_input.args)


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_dimensions_are_checked(name: str) -> None:
    dims = {"BatchNorm1d": 4, "BatchNorm2d": 3, "BatchNorm3d": 4}[name]
    messages = []
    for library in (normext, torch.nn):
        with pytest.raises(ValueError) as error:
            getattr(library, name)(3)(torch.randn([3] * dims))
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def positional(function: Callable) -> list[tuple]:
    """Its parameters. What is beyond torch is keyword-only, and has a default."""
    parameters = inspect.signature(function).parameters.values()
    beyond = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert all(p.default is not p.empty for p in beyond)
    return [(p.name, p.default, p.kind) for p in parameters if p not in beyond]


@module_infos
def test_module_signature(info: object) -> None:
    ours = getattr(normext, info.module_cls.__name__)
    assert issubclass(ours, info.module_cls)
    assert positional(ours) == positional(info.module_cls)
    assert ours._version == info.module_cls._version


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm"])
def test_function_signature(name: str) -> None:
    assert positional(getattr(normext, name)) == positional(getattr(F, name))


MAKERS = {
    "LayerNorm": lambda library, **options: library.LayerNorm((3, 4), **options),
    "RMSNorm": lambda library, bias=None, **options: library.RMSNorm((3, 4), **options),
    "BatchNorm1d": lambda library, **options: library.BatchNorm1d(3, **options),
    "BatchNorm2d": lambda library, **options: library.BatchNorm2d(3, **options),
    "BatchNorm3d": lambda library, **options: library.BatchNorm3d(3, **options),
    "GroupNorm": lambda library, bias=None, **options: library.GroupNorm(3, 6, **options),
    "InstanceNorm2d": lambda library, bias=None, **options: library.InstanceNorm2d(3, affine=True, **options),
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
OPTIONS = [{}, without_bias, {"eps": 1e-3}, {"dtype": torch.float64}, {"device": "meta"}]


@makers
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_construction(make: Callable, options: dict) -> None:
    ours, theirs = make(normext, **options), make(torch.nn, **options)
    assert repr(ours) == repr(theirs)
    for (name, a), (wanted, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert (name, a.shape, a.dtype, a.device) == (wanted, b.shape, b.dtype, b.device)


@makers
def test_state_goes_both_ways(make: Callable) -> None:
    ours, theirs = make(normext), make(torch.nn)
    shake(theirs)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)
    shake(ours)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(dict(theirs.state_dict()), dict(ours.state_dict()), rtol=0, atol=0)


def test_state_of_before_num_batches_tracked() -> None:
    # torch 0.4 saved no num_batches_tracked: version 1 of the state loads still.
    old = torch.nn.BatchNorm1d(3).state_dict()
    del old["num_batches_tracked"]
    old._metadata[""]["version"] = 1
    module = normext.BatchNorm1d(3)
    module.load_state_dict(old)
    assert module.num_batches_tracked == 0


def pickled(module: torch.nn.Module) -> torch.nn.Module:
    """Through pickle and back."""
    return pickle.loads(pickle.dumps(module))


def saved(module: torch.nn.Module) -> torch.nn.Module:
    """Through torch.save and back."""
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@makers
@pytest.mark.parametrize("clone", [copy.deepcopy, copy.copy, pickled, saved], ids=lambda f: f.__name__)
def test_copies(make: Callable, clone: Callable) -> None:
    module = make(normext)
    shake(module)
    twin = clone(module.eval())
    assert type(twin) is type(module)
    assert repr(twin) == repr(module)
    assert not twin.training
    dims = {"LayerNorm": 3, "RMSNorm": 3, "BatchNorm1d": 3, "BatchNorm2d": 4, "BatchNorm3d": 5}
    dims |= {"GroupNorm": 4, "InstanceNorm2d": 4}
    channels = 6 if isinstance(module, normext.GroupNorm) else 3
    x = torch.randn([2, channels, 4, 4, 4][: dims[type(module).__name__]])
    assert torch.equal(twin(x), module(x))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.3},
        {"momentum": None},
        {"track_running_stats": False},
        {"track_running_stats": False, "momentum": None},
        {"affine": False},
        without_bias,
    ],
    ids=str,
)
def test_batch_norm_over_several_batches(device: str, options: dict) -> None:
    ours, theirs = (library.BatchNorm1d(3, device=device, **options) for library in (normext, torch.nn))
    for step in range(4):
        x = values(6, 3, 4, device=device) + step
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    x = values(6, 3, 4, device=device)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))


def test_dropped_statistics(device: str) -> None:
    # Setting the buffers to None after the fact: evaluation uses the batch's, as in torch.
    ours, theirs = (library.BatchNorm1d(3, device=device).eval() for library in (normext, torch.nn))
    for module in (ours, theirs):
        module.running_mean = module.running_var = None
    x = values(6, 3, 4, device=device)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("dtype", HALF, ids=dtype_name)
def test_half_module_of_float32_parameters(device: str, dtype: torch.dtype) -> None:
    """Torch computes on the CPU: its LayerNorm for a GPU refuses such parameters."""
    x = values(6, 3, 4, dtype=dtype, device=device)
    for ours, theirs in (
        (normext.BatchNorm1d(3, device=device), torch.nn.BatchNorm1d(3)),
        (normext.LayerNorm(4, device=device), torch.nn.LayerNorm(4)),
    ):
        actual, expected = ([module(input), *module.buffers()] for module, input in ((ours, x), (theirs, x.cpu())))
        assert actual[0].dtype == expected[0].dtype
        torch.testing.assert_close(actual, expected, check_device=False, **TOLERANCE[dtype])
