"""SyncBatchNorm: in groups of 2, 3 and 4 processes it is BatchNorm of the whole batch, in values, gradients and running
statistics.

The processes of a group are started once and run every case; the tests look at what they report.
"""

import copy
import io
import itertools
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import normext
from normext import activations

if not dist.is_available():
    pytest.skip("torch is built without torch.distributed", allow_module_level=True)

from torch.autograd import forward_ad
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

ops = torch.ops.normext
EPS = 1e-5
UNEVEN = {2: (3, 4), 3: (2, 5, 1), 4: (2, 1, 4, 3)}
WITH_EMPTY = {2: (0, 5), 3: (4, 0, 1), 4: (0, 3, 0, 2)}


def _part(whole: Tensor, samples: tuple[int, ...]) -> Tensor:
    """What of it this process has, in memory of its own and the same layout."""
    return whole.split(samples)[dist.get_rank()].clone(memory_format=torch.preserve_format)


def _sum(part: Tensor) -> Tensor:
    total = part.detach().clone()
    dist.all_reduce(total)
    return total


def _same_everywhere(tensor: Tensor) -> None:
    every = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(every, tensor.contiguous())
    assert all(torch.equal(every[0], other) for other in every)


def _tolerance(dtype: torch.dtype) -> dict[str, float]:
    eps = torch.finfo(dtype).eps
    return {"rtol": 4 * eps, "atol": 8 * eps}


def _check(whole: Tensor, samples: tuple[int, ...], module: nn.Module, scale: float = 1.0) -> None:
    """One training step of all processes against torch's BatchNorm of the whole batch in float64."""
    reference = nn.BatchNorm1d(whole.shape[1], module.eps, module.momentum, module.affine, module.track_running_stats)
    reference.double().load_state_dict(module.state_dict())

    def flat(tensor: Tensor) -> Tensor:
        return tensor.double().flatten(2) if tensor.dim() > 2 else tensor.double()

    x = flat(whole).clone().requires_grad_()
    part = _part(whole, samples).requires_grad_()
    cotangent = torch.randn(whole.shape, dtype=torch.float64).to(whole.dtype)
    expected, output = reference(x), module(part)
    expected.backward(flat(cotangent))
    output.backward(_part(cotangent, samples))

    close = _tolerance(whole.dtype)
    close = {"rtol": close["rtol"], "atol": scale * close["atol"]}
    assert output.shape == part.shape and output.dtype == part.dtype and output.stride() == part.stride()
    assert part.grad.stride() == part.stride()
    torch.testing.assert_close(output.double(), _part(expected.view(whole.shape), samples), **close)
    torch.testing.assert_close(part.grad.double(), _part(x.grad.view(whole.shape), samples), **close)
    for ours, theirs in zip(module.parameters(), reference.parameters(), strict=True):
        assert ours.grad.dtype == ours.dtype
        size = theirs.grad.abs().max() + 1
        torch.testing.assert_close(_sum(ours.grad.double()) / size, theirs.grad / size, **_tolerance(ours.dtype))
    for ours, theirs in zip(module.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=2 * torch.finfo(whole.dtype).eps, atol=1e-7)
        _same_everywhere(ours)


def _module(channels: int = 6, dtype: torch.dtype = torch.float64, **options: object) -> normext.SyncBatchNorm:
    module = normext.SyncBatchNorm(channels, dtype=dtype, **options)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    return module


SIZES = {
    "2d": lambda n: torch.randn(n, 6),
    "3d": lambda n: torch.randn(n, 6, 5),
    "4d": lambda n: torch.randn(n, 6, 7, 9),
    "channels_last": lambda n: torch.randn(n, 6, 7, 9).to(memory_format=torch.channels_last),
    "5d": lambda n: torch.randn(n, 6, 2, 3, 4),
    "channels_last_3d": lambda n: torch.randn(n, 6, 2, 3, 4).to(memory_format=torch.channels_last_3d),
}


def _values(size: str, dtype: torch.dtype) -> None:
    """Parts of several sizes, and some empty ones."""
    for by_world in (UNEVEN, WITH_EMPTY):
        samples = by_world[dist.get_world_size()]
        _check(SIZES[size](sum(samples)).to(dtype), samples, _module(dtype=dtype))


def _half_with_float32_parameters() -> None:
    samples = UNEVEN[dist.get_world_size()]
    _check(torch.randn(sum(samples), 6, 40).bfloat16(), samples, _module(dtype=torch.float32))


def _mean_far_from_zero() -> None:
    """A million deviations from it, and means of processes that are as far from each other."""
    samples = UNEVEN[dist.get_world_size()]
    shape = (sum(samples), 6, 50)
    near = 1e6 + torch.randn(shape, dtype=torch.float64)
    _check(near.float(), samples, _module(dtype=torch.float32), scale=4)
    apart = torch.cat([part + 1000 * i for i, part in enumerate(torch.randn(shape).split(samples))])
    _check(apart, samples, _module(dtype=torch.float32), scale=4)


def _many_elements() -> None:
    """Several threads, blocks and slices."""
    samples = UNEVEN[dist.get_world_size()]
    torch.set_num_threads(2)
    for channels, plane in ((40, 3000), (700, 1)):
        _check(
            3 + torch.randn(4 * sum(samples), channels, plane),
            tuple(4 * n for n in samples),
            _module(channels, torch.float32),
            scale=4,
        )
    torch.set_num_threads(1)


def _cumulative_average() -> None:
    samples = UNEVEN[dist.get_world_size()]
    module = _module(momentum=None)
    for _ in range(3):
        _check(torch.randn(sum(samples), 6, 5, dtype=torch.float64) + 1, samples, module)
        module.zero_grad()
    assert module.num_batches_tracked == 3


def _options() -> None:
    samples = UNEVEN[dist.get_world_size()]
    for options in ({"affine": False}, {"track_running_stats": False}, {"eps": 0.1, "momentum": 0.5}):
        _check(torch.randn(sum(samples), 6, 5, dtype=torch.float64), samples, _module(**options))
    with pytest.raises(ValueError, match="eps must be positive"):
        _module(eps=0.0)(torch.randn(3, 6, dtype=torch.float64))


def _each_gradient() -> None:
    """It is the same whichever are asked for; without the input's nothing travels backward."""
    samples = UNEVEN[dist.get_world_size()]
    x, module = _part(torch.randn(sum(samples), 6, 5, dtype=torch.float64), samples), _module()
    every: dict[str, Tensor] = {}
    for wanted in (("x", "weight", "bias"), ("x",), ("weight",), ("bias",), ("weight", "bias")):
        tensors = {"x": x, "weight": module.weight, "bias": module.bias}
        for name, tensor in tensors.items():
            tensor.requires_grad_(name in wanted)
        grads = torch.autograd.grad(module(x).sin().sum(), [tensors[name] for name in wanted])
        for name, grad in zip(wanted, grads, strict=True):
            assert torch.equal(grad, every.setdefault(name, grad))
    output = module(x.requires_grad_()).sin().sum()
    with torch.no_grad():
        module.bias.add_(1)  # no gradient depends on it
    assert torch.equal(torch.autograd.grad(output, x)[0], every["x"])


def _evaluation() -> None:
    """Nobody waits for anybody."""
    module = _module(affine=False).eval()
    if dist.get_rank() == 0:
        x = torch.randn(3, 6, 4, dtype=torch.float64)
        assert torch.equal(module(x), normext.batch_norm(x, module.running_mean, module.running_var))


def _fused() -> None:
    """A residual and an activation, as the same steps after the norm."""
    samples = WITH_EMPTY[dist.get_world_size()]
    for dtype in (torch.float64, torch.float32):
        for activation, with_residual in itertools.product((None, "relu", ("leaky_relu", 0.2), "silu"), (False, True)):
            module = _module(dtype=dtype, activation=activation)
            apart = _module(dtype=dtype)
            apart.load_state_dict(module.state_dict())
            whole, residual = (torch.randn(sum(samples), 6, 20, dtype=dtype) for _ in range(2))
            results = []
            for norm in (module, apart):
                inputs = [_part(t, samples).requires_grad_() for t in (whole, residual)[: 1 + with_residual]]
                output = norm(*inputs) if norm is module else sum(inputs[1:], norm(inputs[0]))
                if norm is apart:
                    output = activations.apply(output, *activations.parts(activation))
                output.cos().sum().backward()
                results.append([output, *(t.grad for t in (*inputs, *norm.parameters())), *norm.buffers()])
            for fused, expected in zip(*results, strict=True):
                torch.testing.assert_close(fused, expected)


def _all_empty_or_one_value() -> None:
    """Neither has a variance: running statistics stay what they are."""
    for shape in ((0, 6, 3), (1 - min(1, dist.get_rank()), 6, 1)):
        module, x = _module(), torch.randn(shape, dtype=torch.float64, requires_grad=True)
        output = module(x)
        output.sum().backward()
        torch.testing.assert_close(output, module.bias.view(1, -1, 1).expand_as(x))
        assert torch.equal(module.running_mean, torch.zeros_like(module.running_mean))
        assert torch.equal(module.running_var, torch.ones_like(module.running_var))
        assert torch.equal(x.grad, torch.zeros_like(x))


def _groups_of_some() -> None:
    """Processes 0 and 1 have one batch, those after them another, or none."""
    size = dist.get_world_size()
    groups = [dist.new_group(ranks) for ranks in (list(range(2)), list(range(2, size))) if ranks]
    rank = dist.get_rank()
    module, reference = _module(process_group=groups[rank // 2]), nn.BatchNorm1d(6).double()
    x = torch.randn(size, 2, 6, 4, dtype=torch.float64)
    mine = x[:2] if rank < 2 else x[2:]
    module(x[rank])
    reference(mine.flatten(0, 1))
    torch.testing.assert_close(module.running_var, reference.running_var)


class _Model(nn.Module):
    """A norm that is called several times in a forward pass, between layers with parameters."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), norm, nn.Linear(6, 3)

    def forward(self, x: Tensor, calls: int = 1) -> Tensor:
        x = self.first(x)
        for _ in range(calls):
            x = self.norm(x)
        return self.last(x).square()


def _models() -> tuple[_Model, _Model]:
    alone = _Model(nn.BatchNorm1d(6)).double()
    return alone, normext.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(alone))


def _agree(shared: nn.Module, alone: nn.Module, share: float) -> None:
    """Gradients of wrappers are means over the processes, ours those of the sum of all losses."""
    for ours, theirs in zip(shared.parameters(), alone.parameters(), strict=True):
        grad = ours.grad.full_tensor() if isinstance(ours.grad, DTensor) else ours.grad
        torch.testing.assert_close(grad * share, theirs.grad)
    for ours, theirs in zip(shared.buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def _ddp() -> None:
    """One forward pass, two before backward, and a norm called twice in one."""
    size = dist.get_world_size()
    samples = UNEVEN[size]
    for passes, calls in ((1, 1), (2, 1), (1, 2)):
        alone, shared = _models()
        wrapped = DistributedDataParallel(shared)
        batches = [torch.randn(sum(samples), 4, dtype=torch.float64) for _ in range(passes)]
        sum(wrapped(_part(x, samples), calls).sum() for x in batches).backward()
        sum(alone(x, calls).sum() for x in batches).backward()
        _agree(shared, alone, size)
    with pytest.raises(ValueError, match="only work with GPU modules"):
        DistributedDataParallel(nn.SyncBatchNorm(6))


def _fsdp() -> None:
    size = dist.get_world_size()
    alone, shared = _models()
    mesh = init_device_mesh("cpu", (size,))
    for module in (shared.norm, shared):
        fully_shard(module, mesh=mesh)
    x = torch.randn(3 * size, 4, dtype=torch.float64)
    shared(_part(x, (3,) * size)).sum().backward()
    alone(x).sum().backward()
    _agree(shared, alone, size)


def _checkpointing() -> None:
    """The forward pass runs again, collective included, and tracks again, as torch's does."""
    samples = UNEVEN[dist.get_world_size()]
    x, module = torch.randn(sum(samples), 6, dtype=torch.float64), _module()
    grads = []
    for call in (module, lambda part: checkpoint(module, part, use_reentrant=False)):
        part = _part(x, samples).requires_grad_()
        call(part).sin().sum().backward()
        grads.append(part.grad)
    assert torch.equal(*grads)


def _compiled() -> None:
    """Without a break, on inductor; the dynamic sizes of uneven parts are no reason to compile once more."""
    torch._dynamo.reset()
    samples = (4, 7)
    whole = torch.randn(11, 6, 5)
    results = []
    for wrap in (lambda module: module, lambda module: torch.compile(module, fullgraph=True, dynamic=True)):
        torch.manual_seed(1)
        module = _module(dtype=torch.float32)
        part = _part(whole, samples).requires_grad_()
        output = wrap(module)(part)
        output.sin().sum().backward()
        results.append([output, part.grad, module.weight.grad, module.bias.grad, *module.buffers()])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def _no_forward_mode() -> None:
    module, x = _module(), torch.randn(3, 6, dtype=torch.float64)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode AD"):
        module(forward_ad.make_dual(x, x))
    with pytest.raises(NotImplementedError, match=r"torch\.func"):
        torch.func.grad(lambda v: module(v).sum())(x)


def _raised_by_one() -> None:
    """The other process waits as long as the backend does."""
    group = dist.new_group(timeout=timedelta(seconds=3))
    module, x = _module(process_group=group), torch.randn(3, 6, dtype=torch.float64)
    if dist.get_rank() == 1:
        with pytest.raises(NotImplementedError, match="not implemented for 'Int'"):
            module(x.int())
    else:
        with pytest.raises(RuntimeError, match=r"(?i)timed? ?out"):
            module(x)
    dist.barrier()


class _Copied(torch.autograd.Function):
    """What every process has, to be used by each in its own way: gradients add up."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return _Added.apply(grad)


class _Added(torch.autograd.Function):
    """The sum over processes, to be used by all in the same way."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return _sum(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return _Copied.apply(grad)


def _gradcheck() -> None:
    """First and second derivatives of the whole batch, which every process perturbs at the same time."""
    samples, rank = (2, 1), dist.get_rank()
    x, weight, bias, residual = (
        torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((3, 2, 2), (2,), (2,), (3, 2, 2))
    )
    for module, inputs in (
        (normext.SyncBatchNorm(2).double(), (x, weight, bias)),
        (normext.SyncBatchNorm(2, activation="silu").double(), (x, weight, bias, residual)),
    ):

        def whole(x: Tensor, weight: Tensor, bias: Tensor, *residual: Tensor, module: nn.Module = module) -> Tensor:
            x, weight, bias, *residual = (_Copied.apply(t) for t in (x, weight, bias, *residual))
            mine = tuple(t.split(samples)[rank] for t in (x, *residual))
            part = torch.func.functional_call(module, {"weight": weight, "bias": bias}, mine)
            others = (part.new_zeros(n, *part.shape[1:]) for n in samples)
            return _Added.apply(torch.cat([part if i == rank else zeros for i, zeros in enumerate(others)]))

        assert torch.autograd.gradcheck(whole, inputs)
        assert torch.autograd.gradgradcheck(whole, inputs)


CASES: dict[str, Callable[[], None]] = {
    f"values-{size}-{str(dtype).removeprefix('torch.')}": lambda size=size, dtype=dtype: _values(size, dtype)
    for size in SIZES
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}
CASES |= {
    case.__name__[1:]: case
    for case in (
        _half_with_float32_parameters,
        _mean_far_from_zero,
        _many_elements,
        _cumulative_average,
        _options,
        _each_gradient,
        _evaluation,
        _fused,
        _all_empty_or_one_value,
        _groups_of_some,
        _ddp,
        _fsdp,
        _checkpointing,
        _no_forward_mode,
    )
}
OF_TWO = {"compiled": _compiled, "gradcheck": _gradcheck, "raised_by_one": _raised_by_one}


def _left_alone() -> None:
    """The other process has gone: what says so is the backend."""
    with pytest.raises(RuntimeError, match=r"(?i)gloo|connection|peer"):
        _module()(torch.randn(3, 6, dtype=torch.float64))


def _run_cases(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size, init_method=f"file://{folder}/store")
    reports = {}

    def run(name: str, case: Callable[[], None]) -> None:
        torch.manual_seed(0)
        try:
            case()
        except Exception:
            reports[name] = traceback.format_exc()

    for name, case in (CASES | (OF_TWO if size == 2 else {})).items():
        run(name, case)
    if size == 2 and rank == 0:
        run("left_alone", _left_alone)
    torch.save(reports, Path(folder) / f"{rank}")
    if size == 2 and rank == 0:
        os._exit(0)  # its group has lost the other process: it cannot be destroyed, and its threads may abort an exit
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3, 4], ids=lambda size: f"{size} processes")
def reports(request: pytest.FixtureRequest) -> Iterator[tuple[int, list[dict[str, str]]]]:
    """How many processes there were, and what went wrong in each, by case."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_run_cases, (request.param, folder), nprocs=request.param)
        yield request.param, [torch.load(Path(folder) / str(rank)) for rank in range(request.param)]


@pytest.mark.parametrize("name", [*CASES, *OF_TWO, "left_alone"])
def test_processes(reports: tuple[int, list[dict[str, str]]], name: str) -> None:
    size, found = reports
    if name not in CASES and size != 2:
        pytest.skip("in a group of two")
    for rank, report in enumerate(found):
        assert name not in report, f"process {rank} of {size}: {report[name]}"


# One process


def test_is_torchs_class() -> None:
    theirs = nn.SyncBatchNorm(5, 1e-3, None, True, True)
    ours = normext.SyncBatchNorm(5, 1e-3, None, True, True)
    assert isinstance(ours, nn.SyncBatchNorm) and repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert torch.load(io.BytesIO(_saved(ours)), weights_only=False).eps == 1e-3


def _saved(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("training", [True, False])
def test_alone_is_batch_norm(training: bool) -> None:
    x = torch.randn(4, 5, 3)
    ours, theirs = normext.SyncBatchNorm(5).train(training), normext.BatchNorm1d(5).train(training)
    assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
    with pytest.raises(ValueError, match="at least 2D"):
        ours(torch.randn(5))


def test_convert() -> None:
    model = nn.Sequential(nn.SyncBatchNorm(4, eps=1e-3, momentum=None, process_group="group"), nn.ReLU())
    before = dict(model.state_dict(keep_vars=True))
    assert len(normext.convert(model).converted) == 1
    assert type(model[0]) is normext.SyncBatchNorm
    assert all(a is before[name] for name, a in model.state_dict(keep_vars=True).items())
    assert (model[0].process_group, model[0].eps, model[0].momentum) == ("group", 1e-3, None)
    assert type(normext.revert(model)[0]) is nn.SyncBatchNorm and model[0].process_group == "group"


@pytest.mark.parametrize("cls", [nn.BatchNorm2d, normext.BatchNorm2d, nn.SyncBatchNorm])
def test_convert_sync_batchnorm(cls: type[nn.Module]) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Sequential(cls(4, momentum=0.3, eps=1e-3).eval()), cls(4, affine=False)
    )
    before = dict(model.state_dict(keep_vars=True))
    converted = normext.SyncBatchNorm.convert_sync_batchnorm(model, "group")
    assert converted is model
    assert {type(model[1][0]), type(model[2])} == {normext.SyncBatchNorm}
    assert all(a is before[name] for name, a in model.state_dict(keep_vars=True).items())
    norm = model[1][0]
    assert (norm.momentum, norm.eps, norm.training, norm.process_group) == (0.3, 1e-3, False, "group")
    assert type(normext.SyncBatchNorm.convert_sync_batchnorm(cls(3))) is normext.SyncBatchNorm


# The operators


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_operators_by_themselves(backend: str, dtype: torch.dtype) -> None:
    """Parts of a batch, one of them empty, in one process."""
    whole = (2 + torch.randn(9, 5, 4, 4)).to(backend, dtype)
    weight, bias = torch.rand(5).to(backend, dtype), torch.rand(5).to(backend, dtype)
    parts = whole.split((2, 0, 4, 3))
    moments = ops.batch_norm_merge(torch.stack([ops.batch_norm_moments(part) for part in parts]))
    values = whole.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(moments[:5], values.mean(1))
    torch.testing.assert_close(moments[5:10], values.var(1, correction=0) * values.shape[1])
    assert moments[10] == values.shape[1]

    mapped = [ops.batch_norm_map(part, moments, weight, bias, EPS) for part in parts]
    output, mean, rstd, _ = ops.batch_norm_forward(whole, None, None, weight, bias, True, EPS)
    torch.testing.assert_close(torch.cat([y for y, *_ in mapped]), output)
    for _, *statistics in mapped:  # an empty part's, too
        torch.testing.assert_close(statistics, [mean, rstd])

    grad_output = torch.randn(whole.shape).to(whole)
    pairs = list(zip(grad_output.split((2, 0, 4, 3)), parts, strict=True))
    sums = sum(ops.batch_norm_gradient_sums(dy, x, moments, mean, rstd) for dy, x in pairs)
    grads = [ops.batch_norm_gradient_map(dy, x, moments, mean, rstd, weight, sums) for dy, x in pairs]
    expected = ops.batch_norm_backward(grad_output, whole, mean, rstd, weight, True, EPS, [True, True, True])
    torch.testing.assert_close(torch.cat(grads), expected[0])
    torch.testing.assert_close(sums.view(2, -1).to(dtype), torch.stack([expected[2], expected[1]]))


def test_operators_check_their_arguments(backend: str) -> None:
    x = torch.randn(4, 5, 3, device=backend)
    moments = ops.batch_norm_moments(x)
    _, mean, rstd = ops.batch_norm_map(x, moments, None, None, EPS)
    sums = ops.batch_norm_gradient_sums(x, x, moments, mean, rstd)
    with pytest.raises(RuntimeError, match="at least 2 dimensions"):
        ops.batch_norm_moments(x.flatten())
    with pytest.raises(NotImplementedError, match="not implemented for 'Int'"):
        ops.batch_norm_moments(x.int())
    for parts in (moments, torch.stack([moments[1:]]), torch.stack([moments.float()]), moments[None][:0]):
        with pytest.raises(RuntimeError, match="expected parts of size"):
            ops.batch_norm_merge(parts)
    with pytest.raises(RuntimeError, match="expected moments of size"):
        ops.batch_norm_map(x, moments[1:], None, None, EPS)
    with pytest.raises(RuntimeError, match="weight should contain 5 elements not 4"):
        ops.batch_norm_map(x, moments, torch.ones(4, device=backend), None, EPS)
    with pytest.raises(RuntimeError, match="mixed dtype"):
        ops.batch_norm_map(x, moments, torch.ones(5, device=backend).double(), None, EPS)
    with pytest.raises(RuntimeError, match="grad_output of input's shape"):
        ops.batch_norm_gradient_sums(x[1:], x, moments, mean, rstd)
    with pytest.raises(RuntimeError, match="expected rstd of size"):
        ops.batch_norm_gradient_sums(x, x, moments, mean, rstd.double())
    with pytest.raises(RuntimeError, match="expected sums of size"):
        ops.batch_norm_gradient_map(x, x, moments, mean, rstd, None, sums[1:])
