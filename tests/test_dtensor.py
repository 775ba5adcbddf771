"""The norms of distributed tensors, on two processes: results and gradients are one process's, and what needs no
communication has none.

The processes are started once and run every case; the tests look at what they report.
"""

import copy
import itertools
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import normext

if not dist.is_available():
    pytest.skip("torch is built without torch.distributed", allow_module_level=True)

from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DeviceMesh,
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
    init_device_mesh,
)
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module

ops = torch.ops.normext
SHAPE = (4, 6, 8)


def _norm(make: Callable[..., nn.Module], *args: object, training: bool = True, **kwargs: object) -> nn.Module:
    module = make(*args, **kwargs).double().train(training)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    return module


NORMS = {
    "layer_norm": lambda: _norm(normext.LayerNorm, 8),
    "layer_norm-no_affine": lambda: _norm(normext.LayerNorm, 8, elementwise_affine=False),
    "layer_norm-two_dims-no_affine": lambda: _norm(normext.LayerNorm, (6, 8), elementwise_affine=False),
    "layer_norm-two_dims-no_bias": lambda: _norm(normext.LayerNorm, (6, 8), bias=False),
    "rms_norm": lambda: _norm(normext.RMSNorm, 8, weight_offset=1.0),
    "batch_norm-eval": lambda: _norm(normext.BatchNorm1d, 6, training=False),
    "batch_norm": lambda: _norm(normext.BatchNorm1d, 6),
    "batch_norm-silu": lambda: _norm(normext.BatchNorm1d, 6, activation="silu"),
    "batch_norm-no_affine": lambda: _norm(normext.BatchNorm1d, 6, affine=False),
    "batch_norm-no_running": lambda: _norm(normext.BatchNorm1d, 6, track_running_stats=False),
    "group_norm": lambda: _norm(normext.GroupNorm, 2, 6),
    "group_norm-silu": lambda: _norm(normext.GroupNorm, 2, 6, activation="silu"),
    "instance_norm-running": lambda: _norm(normext.InstanceNorm1d, 6, affine=True, track_running_stats=True),
    "instance_norm-eval": lambda: _norm(normext.InstanceNorm1d, 6, track_running_stats=True, training=False),
}

# Dimensions of the input that each norm can be sharded over as it is.
LOCAL = {
    "layer_norm": (0, 1),
    "layer_norm-no_affine": (0, 1),
    "rms_norm": (0, 1),
    "layer_norm-two_dims-no_affine": (0,),
    "layer_norm-two_dims-no_bias": (0,),
    "batch_norm-eval": (0, 1, 2),
    "batch_norm": (1,),
    "batch_norm-silu": (1,),
    "batch_norm-no_affine": (1,),
    "batch_norm-no_running": (1,),
    "group_norm": (0,),
    "group_norm-silu": (0,),
    "instance_norm-running": (),
    "instance_norm-eval": (0, 1, 2),
}


def _check(name: str, dim: int, mesh: DeviceMesh) -> None:
    """Output, gradients and buffers, to the second order, with the input sharded over ``dim``."""
    alone, x = NORMS[name](), torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    by_channel = Shard(0) if dim == 1 and "batch_norm" in name else Replicate()

    def distribute(_: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for key, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, key, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [by_channel])))
        for key, buffer in list(module.named_buffers(recurse=False)):
            placement = by_channel if buffer.dim() else Replicate()
            module.register_buffer(key, distribute_tensor(buffer, mesh, [placement]))

    shared = distribute_module(copy.deepcopy(alone), mesh, distribute)
    sharded = distribute_tensor(x.detach(), mesh, [Shard(dim)]).requires_grad_()
    y = alone(x)
    with CommDebugMode() as communication:
        output = shared(sharded)
        cotangent = torch.randn(SHAPE, dtype=torch.float64)
        given = distribute_tensor(cotangent, mesh, output.placements).requires_grad_()
        communication.comm_counts.clear()  # distribute_tensor's
        output.backward(given, create_graph=True)
    if dim in LOCAL[name]:
        assert output.placements == sharded.grad.placements == (Shard(dim),)
        gradient = Shard(0) if by_channel == Shard(0) else Partial()
        assert all(parameter.grad.placements == (gradient,) for parameter in shared.parameters())
        assert not communication.get_total_counts()
    y.backward(cotangent.requires_grad_(), create_graph=True)
    pairs = [(output, y), (sharded.grad, x.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(shared.parameters(), alone.parameters(), strict=True)]
    pairs += list(zip(shared.buffers(), alone.buffers(), strict=True))
    for tensor in (sharded, x):
        first, tensor.grad = tensor.grad, None
        first.square().sum().backward()
    pairs += [(given.grad, cotangent.grad)]
    if x.grad is not None:  # evaluation is linear
        pairs += [(sharded.grad, x.grad)]
    for actual, expected in pairs:
        torch.testing.assert_close(actual.full_tensor(), expected)


def _sequence_parallel(mesh: DeviceMesh) -> None:
    """Each process has a part of the sequence; gradients of the parameters add up."""
    alone, x = NORMS["layer_norm"](), torch.randn(SHAPE, dtype=torch.float64)
    model = parallelize_module(
        nn.Sequential(copy.deepcopy(alone)), mesh, {"0": SequenceParallel(use_local_output=True)}
    )
    part = x.chunk(2, dim=1)[mesh.get_local_rank()].clone().requires_grad_()
    model(part).square().sum().backward()
    x.requires_grad_()
    alone(x).square().sum().backward()
    torch.testing.assert_close(part.grad, x.grad.chunk(2, dim=1)[mesh.get_local_rank()])
    for actual, expected in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(actual.grad.full_tensor(), expected.grad)


def _two_dimensional_mesh(_: DeviceMesh) -> None:
    """A layout for each dimension of the mesh."""
    mesh = init_device_mesh("cpu", (2, 1))
    x, weight = torch.randn(SHAPE), torch.randn(8)
    sharded, replicated = distribute_tensor(x, mesh, [Shard(0), Shard(1)]), distribute_tensor(weight, mesh)
    output = normext.layer_norm(sharded, [8], replicated)
    assert output.placements == (Shard(0), Shard(1))
    torch.testing.assert_close(output.full_tensor(), normext.layer_norm(x, [8], weight))


def _inference(mesh: DeviceMesh) -> None:
    """The operator itself, which inference mode does not take apart."""
    x = torch.randn(SHAPE)
    sharded = distribute_tensor(x, mesh, [Shard(0)])
    with torch.inference_mode():
        torch.testing.assert_close(normext.layer_norm(sharded, [8]).full_tensor(), normext.layer_norm(x, [8]))
        output = normext.batch_norm(sharded, None, None, training=True)
        torch.testing.assert_close(output.full_tensor(), normext.batch_norm(x, None, None, training=True))


def _different_running_placements(mesh: DeviceMesh) -> None:
    """A tensor that is written to cannot be redistributed first."""
    x = distribute_tensor(torch.randn(SHAPE), mesh, [Replicate()])
    mean, var = (distribute_tensor(torch.ones(6), mesh, [placement]) for placement in (Shard(0), Replicate()))
    with pytest.raises(RuntimeError, match="running_mean and running_var of the same placements"):
        normext.batch_norm(x, mean, var, training=True)


class _RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eps, self.weight = 1e-6, nn.Parameter(torch.rand(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def _converted(mesh: DeviceMesh) -> None:
    """Before and after FSDP has put classes of its own over the norms'."""
    for converted_first in (True, False):
        model, x = nn.Sequential(nn.LayerNorm(8), _RMSNorm()), torch.randn(3, 8)
        steps = [lambda m=model: normext.convert(m), lambda m=model: [fully_shard(part, mesh=mesh) for part in m]]
        for step in steps if converted_first else steps[::-1]:
            step()
        assert isinstance(model[0], normext.LayerNorm) and not normext.convert(model).converted
        model[1].unshard()
        expected = nn.functional.rms_norm(model[0](x), [8], model[1].weight, 1e-6)
        torch.testing.assert_close(model(x), expected)
        model(x).sum().backward()
        normext.revert(model)
        assert not isinstance(model[0], normext.LayerNorm) and len(normext.convert(model).converted) == 2


def _enabled(mesh: DeviceMesh) -> None:
    """FSDP over torch's own norms, computed by normext: the gradients are those of the whole batch."""
    alone = nn.Sequential(nn.Conv1d(6, 6, 1), nn.GroupNorm(2, 6), nn.InstanceNorm1d(6, affine=True), nn.LayerNorm(8))
    x = torch.randn(4, 6, 8)
    part = x.chunk(2)[mesh.get_local_rank()]
    model = fully_shard(copy.deepcopy(alone), mesh=mesh)
    with normext.enabled():
        output = model(part)
        output.sin().mean().backward()
    alone(x).sin().mean().backward()
    torch.testing.assert_close(output, alone(part), rtol=1e-4, atol=1e-4)
    for found, expected in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(found.grad.full_tensor(), expected.grad, rtol=1e-4, atol=1e-4)


def _fused(mesh: DeviceMesh) -> None:
    """A residual, and a scale and shift for each sample: outputs and gradients lie as they should."""
    x, residual, scale = (torch.randn(*size, dtype=torch.float64) for size in (SHAPE, SHAPE, (SHAPE[0], SHAPE[-1])))
    norms = {
        "add_layer_norm": lambda f, x, r, s: sum(f(x, r, [8], s[0])),
        "add_rms_norm": lambda f, x, r, s: sum(f(x, r, [8], s[0])),
        "adaptive_layer_norm": lambda f, x, r, s: f(x, s, s) + r,
        "adaptive_rms_norm": lambda f, x, r, s: f(x, s) + r,
        "batch_norm": lambda f, x, r, s: f(x, None, None, training=True, residual=r, activation="silu") + s[0],
    }
    for (name, call), dim in itertools.product(norms.items(), (0, 1)):
        alone = [t.clone().requires_grad_() for t in (x, residual, scale)]
        by_sample = Shard(0) if name.startswith("adaptive") and dim == 0 else Replicate()
        placed = (Shard(dim), Shard(dim), by_sample)
        shared = [distribute_tensor(t.detach(), mesh, [p]).requires_grad_() for t, p in zip(alone, placed, strict=True)]
        outputs = [call(getattr(normext, name), *tensors) for tensors in (alone, shared)]
        torch.testing.assert_close(outputs[1].full_tensor(), outputs[0])
        if name != "batch_norm" or dim == 1:  # 0 is what its statistics are over
            assert outputs[1].placements == (Shard(dim),)
        for output in outputs:
            output.sin().sum().backward()
        for a, b in zip(shared, alone, strict=True):
            torch.testing.assert_close(a.grad.full_tensor(), b.grad)


def _batch_in_parts(mesh: DeviceMesh) -> None:
    """The halves of SyncBatchNorm: once the moments are known, only the sums of a part have to be added up."""
    x, grad, residual = (torch.randn(3, 6, 5, dtype=torch.float64) for _ in range(3))
    weight, bias = torch.rand(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)

    def halves(x: torch.Tensor, grad: torch.Tensor, *rest: torch.Tensor) -> list[torch.Tensor]:
        residual, weight, bias = rest
        moments = ops.batch_norm_merge(ops.batch_norm_moments(x)[None])
        output, mean, rstd = ops.batch_norm_map(x, moments, weight, bias, 1e-5, residual, "silu")
        sums = ops.batch_norm_gradient_sums(grad, x, moments, mean, rstd)
        return [output, ops.batch_norm_gradient_map(grad, x, moments, mean, rstd, weight, sums), sums, moments, mean]

    expected = halves(x, grad, residual, weight, bias)
    for dim in range(3):
        data = [distribute_tensor(t, mesh, [Shard(dim)]) for t in (x, grad, residual)]
        found = halves(*data, *(distribute_tensor(t, mesh, [Replicate()]) for t in (weight, bias)))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.full_tensor(), b)
        if dim != 1:
            placements = [Shard(dim), Shard(dim), Partial(), Replicate(), Replicate()]
            assert [t.placements for t in found] == [(placement,) for placement in placements]


def _no_sync_batch_norm(mesh: DeviceMesh) -> None:
    """Whose input is a part of a batch, where a DTensor is all of one; in evaluation there is no difference."""
    norm, x = distribute_module(normext.SyncBatchNorm(6), mesh), distribute_tensor(torch.randn(SHAPE), mesh, [Shard(0)])
    with pytest.raises(NotImplementedError, match="got a DTensor"):
        norm(x)
    assert norm.eval()(x).placements == (Shard(0),)


CASES: dict[str, Callable[[DeviceMesh], None]] = {
    f"{name}-{dim}": lambda mesh, name=name, dim=dim: _check(name, dim, mesh) for name in NORMS for dim in range(3)
}
CASES |= {
    case.__name__[1:]: case
    for case in (
        _sequence_parallel,
        _two_dimensional_mesh,
        _inference,
        _different_running_placements,
        _converted,
        _enabled,
        _fused,
        _batch_in_parts,
        _no_sync_batch_norm,
    )
}


def _run_cases(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/store")
    mesh = init_device_mesh("cpu", (2,))
    reports = {}
    for name, case in CASES.items():
        torch.manual_seed(0)
        try:
            case(mesh)
        except Exception:
            reports[name] = traceback.format_exc()
    torch.save(reports, Path(folder) / f"{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def reports() -> list[dict[str, str]]:
    """What went wrong in each process, by case."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_run_cases, (folder,), nprocs=2)
        return [torch.load(Path(folder) / str(rank)) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes(reports: list[dict[str, str]], name: str) -> None:
    for rank, report in enumerate(reports):
        assert name not in report, f"process {rank}: {report[name]}"


def test_every_operator_has_a_strategy() -> None:
    """But for those that are taken apart into others before DTensor sees them."""
    known = DTensor._op_dispatcher.sharding_propagator.op_strategy_funcs
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("normext::")]
    overloads = [getattr(ops, name.removeprefix("normext::")).default for name in names]
    taken_apart = torch._C.DispatchKey.CompositeImplicitAutograd
    assert overloads
    assert not [op for op in overloads if op not in known and not op.has_kernel_for_dispatch_key(taken_apart)]
