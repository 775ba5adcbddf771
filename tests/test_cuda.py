"""What only a GPU can show: streams, graphs, several devices, no synchronization, memory beyond 2^31 elements.

The kernels' results are tested with everybody else's, in test_<norm>.py on the backend "cuda".
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from inputs import channels_last, off_by, running, values
from torch import Tensor

import normext
from normext import _C, synchronized

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(not _C.build_info["cuda_architectures"], reason="built for the CPU only"),
]

SHAPE = (16, 64, 28, 28)
LAYERS: dict[str, Callable[[], torch.nn.Module]] = {
    "layer_norm": lambda: normext.LayerNorm(SHAPE[1:]),
    "layer_norm of a short row": lambda: normext.LayerNorm(SHAPE[-1]),
    "rms_norm": lambda: normext.RMSNorm(SHAPE[1:]),
    "batch_norm": lambda: normext.BatchNorm2d(SHAPE[1]),
    "group_norm": lambda: normext.GroupNorm(8, SHAPE[1], activation="silu"),
}
layers = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
layouts = pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last], ids=["NCHW", "NHWC"])
SLEEP = 50_000_000  # cycles of the GPU: tens of milliseconds, much longer than it takes to launch what follows


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return values(*SHAPE, dtype=dtype, device="cuda")


def step(layer: torch.nn.Module, x: Tensor, grad_output: Tensor) -> tuple[Tensor, ...]:
    """Output and gradients of one training step."""
    x = x.detach().requires_grad_()
    output = layer(x)
    return output.detach(), *torch.autograd.grad(output, [x, *layer.parameters()], grad_output)


@contextmanager
def no_synchronization() -> Iterator[None]:
    """Whatever waits for the GPU is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Streams


@layers
@layouts
def test_work_is_ordered_on_the_current_stream(layer: Callable, layout: Callable) -> None:
    module, (x, grad_output) = layer().cuda(), (layout(images()) for _ in range(2))
    expected = step(module, x, grad_output)
    late = torch.zeros_like(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(SLEEP)
        late.copy_(x)  # only who waits behind this on the same stream sees x
        found = step(module, late, grad_output)
        late.zero_()  # and only who has read it before this
    torch.cuda.current_stream().wait_stream(side)
    for ours, wanted in zip(found, expected, strict=True):
        assert torch.equal(ours, wanted)


@layers
def test_streams_do_not_share_scratch_memory(layer: Callable) -> None:
    """Steps on many streams at once; each has the result that it has alone."""
    inputs = [(images(), images()) for _ in range(4)]
    modules = [layer().cuda() for _ in inputs]
    expected = [step(module, *pair) for module, pair in zip(modules, inputs, strict=True)]
    streams = [torch.cuda.Stream() for _ in inputs]
    found: list[tuple[Tensor, ...]] = []
    torch.cuda.synchronize()
    for module, pair, stream in zip(modules, inputs, streams, strict=True):
        with torch.cuda.stream(stream):
            for _ in range(10):
                result = step(module, *pair)
            found.append(result)
    torch.cuda.synchronize()
    for ours, wanted in zip(found, expected, strict=True):
        assert all(map(torch.equal, ours, wanted))


@layers
@layouts
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_step_never_waits_for_the_gpu(layer: Callable, layout: Callable, training: bool) -> None:
    """Nor does the update of the running statistics."""
    module, (x, grad_output) = layer().cuda().train(training), (layout(images()) for _ in range(2))
    step(module, x, grad_output)  # memory is allocated, kernels are loaded
    with no_synchronization():
        step(module, x, grad_output)


# Graphs


@layers
@layouts
def test_a_graph_replays_with_other_inputs(layer: Callable, layout: Callable) -> None:
    module, twin = layer().cuda(), layer().cuda()
    x, grad_output = (layout(images()) for _ in range(2))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(module, x, grad_output)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(module, x, grad_output)
    twin.load_state_dict(module.state_dict())
    for _ in range(3):
        x.copy_(images())
        grad_output.copy_(images())
        graph.replay()
        for ours, wanted in zip(captured, step(twin, x, grad_output), strict=True):
            assert torch.equal(ours, wanted)
        for ours, wanted in zip(module.buffers(), twin.buffers(), strict=True):
            assert torch.equal(ours, wanted)


@layers
def test_compile_with_cuda_graphs(layer: Callable) -> None:
    torch.compiler.reset()
    module, twin = layer().cuda(), layer().cuda()
    compiled = torch.compile(module, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):  # runs, records, replays
        x, grad_output = images(), images()
        torch.compiler.cudagraph_mark_step_begin()
        found = [t.clone() for t in step(compiled, x, grad_output)]
        for ours, wanted in zip(found, step(twin, x, grad_output), strict=True):
            torch.testing.assert_close(ours, wanted)
    for ours, wanted in zip(module.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.skipif(not dist.is_available() or not dist.is_nccl_available(), reason="no NCCL")
def test_a_graph_captures_the_collectives_of_sync_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a group of one, which is made to communicate; eagerly nothing waits for the GPU."""
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        monkeypatch.setattr(synchronized, "group_of", lambda _: (dist.group.WORLD.group_name, 1))
        module, twin = normext.SyncBatchNorm(SHAPE[1]).cuda(), normext.BatchNorm2d(SHAPE[1]).cuda()
        x, grad_output = images(), images()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step(module, x, grad_output)  # NCCL is set up
            with no_synchronization():
                step(module, x, grad_output)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step(module, x, grad_output)
        twin.load_state_dict(module.state_dict())
        for _ in range(3):
            x.copy_(images())
            grad_output.copy_(images())
            graph.replay()
            for ours, wanted in zip(captured, step(twin, x, grad_output), strict=True):
                torch.testing.assert_close(ours, wanted)
            for ours, wanted in zip(module.buffers(), twin.buffers(), strict=True):
                torch.testing.assert_close(ours, wanted)
    finally:
        dist.destroy_process_group()


# Dtypes, alignment, size


ROWS = [
    *[(5, 1), (33, 7), (70, 64), (9, 1000), (300, 768), (40, 1536), (5, 4097), (3, 12288), (2, 32768), (2, 65536)],
    (1, 300001),
]
PLANES = [(2, 3, 7, 7), (4, 19, 9, 9), (2, 64, 56, 56), (16, 3, 64, 64), (2, 5, 300, 300), (64, 768, 7, 7)]
EVERY_SCHEDULE = [
    *[(norm, size, torch.Tensor.contiguous) for norm in ("LayerNorm", "RMSNorm") for size in ROWS],
    *[("BatchNorm1d", size, torch.Tensor.contiguous) for size in ((5, 3), (300, 70))],
    *[
        (norm, size, layout)
        for norm in ("BatchNorm2d", "InstanceNorm2d")
        for size in PLANES
        for layout in (torch.Tensor.contiguous, channels_last)
    ],
]


@pytest.mark.parametrize(("norm", "size", "layout"), EVERY_SCHEDULE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_schedule(norm: str, size: tuple[int, ...], layout: Callable, dtype: torch.dtype) -> None:
    """The CPU's results, for rows and planes of every size. `make gpu-test` runs this under compute-sanitizer too."""
    module = getattr(normext, norm)(size[1])
    x, grad_output = (layout(values(*size, dtype=dtype)) for _ in range(2))
    expected = step(module, x, grad_output)
    found = step(module.cuda(), x.cuda(), grad_output.cuda())
    relative = 1e-4 if dtype == torch.float32 else 2e-2
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), wanted, rtol=relative, atol=relative * wanted.abs().max().item())


@pytest.mark.parametrize("norm", ["LayerNorm", "BatchNorm2d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_gives_the_dtype_that_torch_gives(norm: str, dtype: torch.dtype, autocast: torch.dtype) -> None:
    x = images(dtype).requires_grad_()
    size = SHAPE[-1] if norm == "LayerNorm" else SHAPE[1]
    dtypes = []
    for library in (normext, torch.nn):
        module = getattr(library, norm)(size, device="cuda")
        with torch.autocast("cuda", dtype=autocast):
            output = module(x)
        gradients = torch.autograd.grad(output, [x, *module.parameters()], torch.ones_like(output))
        dtypes.append([output.dtype, *(gradient.dtype for gradient in gradients)])
    assert dtypes[0] == dtypes[1]


@layers
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_misaligned_views(layer: Callable, layout: Callable, dtype: torch.dtype, offset: int) -> None:
    """A pointer that no vector access may use. Sums may be grouped otherwise: the last digits of the largest differ."""
    module, (x, grad_output) = layer().to("cuda", dtype), (layout(images(dtype)) for _ in range(2))
    found = step(module, off_by(x, offset), off_by(grad_output, offset))
    for ours, wanted in zip(found, step(module, x, grad_output), strict=True):
        relative = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(ours, wanted, rtol=relative, atol=relative * wanted.abs().max().item())


@pytest.mark.parametrize("norm", ["layer_norm of many rows", "layer_norm of a long row", "NCHW", "NHWC"])
def test_more_elements_than_32_bits_count(norm: str) -> None:
    """A short pattern, repeated: its statistics are those of the whole."""
    period, size = 2**16, 2**31 + 2**17
    if torch.cuda.mem_get_info()[0] < 5 * 2 * size:
        pytest.skip("needs 20 GiB of free memory on the GPU")
    patterns = torch.randn(2, period, device="cuda").bfloat16()
    x, grad_output = (pattern.expand(size // period, period).contiguous() for pattern in patterns)
    wide, wide_grad_output = patterns.double()
    x.requires_grad_(), wide.requires_grad_()

    def batch_norm(function: Callable, t: Tensor) -> Tensor:
        if norm == "NCHW":
            return function(t.view(-1, 4, 128, 128), None, None, training=True)
        return function(t.view(-1, 128, 128, 4).permute(0, 3, 1, 2), None, None, training=True).permute(0, 2, 3, 1)

    if norm == "layer_norm of many rows":
        output, expected = normext.layer_norm(x.view(-1, 64), [64]), F.layer_norm(wide.view(-1, 64), [64])
    elif norm == "layer_norm of a long row":
        output, expected = normext.layer_norm(x.view(1, -1), [size]), F.layer_norm(wide, [period])
    else:
        output, expected = batch_norm(normext.batch_norm, x), batch_norm(F.batch_norm, wide)
    (gradient,) = torch.autograd.grad(output, x, grad_output.view_as(output))
    (expected_gradient,) = torch.autograd.grad(expected, wide, wide_grad_output.view_as(expected))
    for found, wanted in ((output, expected), (gradient, expected_gradient)):
        for part in (found.flatten()[:period], found.flatten()[-period:]):
            torch.testing.assert_close(part, wanted.flatten().bfloat16(), rtol=2e-2, atol=1e-2)


# Devices


several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")


@several
@layers
@layouts
def test_the_current_device_need_not_be_the_tensors(layer: Callable, layout: Callable) -> None:
    module, (x, grad_output) = layer().cuda(), (layout(images()) for _ in range(2))
    expected = step(module, x, grad_output)
    with torch.cuda.device(0):
        found = step(module.to("cuda:1"), x.to("cuda:1"), grad_output.to("cuda:1"))
        assert torch.cuda.current_device() == 0
    for ours, wanted in zip(found, expected, strict=True):
        assert ours.device == torch.device("cuda:1")
        torch.testing.assert_close(ours.cpu(), wanted.cpu())


@several
def test_two_gpus_in_one_call_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="same device"):
        normext.layer_norm(torch.randn(4, 5, device="cuda:0"), [5], torch.ones(5, device="cuda:1"))


def test_cpu_and_gpu_in_one_call_are_an_error() -> None:
    x, parameter = torch.randn(4, 5, device="cuda"), torch.ones(5)
    for call in (
        lambda: normext.layer_norm(x, [5], parameter),
        lambda: normext.layer_norm(x.cpu(), [5], parameter.cuda()),
        lambda: normext.batch_norm(x, *running(5), training=True),
        lambda: normext.batch_norm(x.cpu(), *running(5, device="cuda"), training=False),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            call()
