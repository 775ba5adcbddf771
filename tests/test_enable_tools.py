"""What looks at a model's types, traces it, wraps it or compiles it works as before while norms are enabled."""

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from inputs import values
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import stateless
from torch.utils.checkpoint import checkpoint

import normext

pytestmark = pytest.mark.filterwarnings("ignore")  # what torch says of its own tools


class Norms(nn.Module):
    """Every norm of torch.nn's that is enabled."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 1)
        self.batch_norm = nn.BatchNorm2d(4)
        self.instance_norm = nn.InstanceNorm2d(4, affine=True)
        self.group_norm = nn.GroupNorm(2, 4)
        self.layer_norm = nn.LayerNorm(5)
        self.rms_norm = nn.RMSNorm((5, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.group_norm(self.instance_norm(self.batch_norm(self.convolution(x))).sin())
        return self.rms_norm(self.layer_norm(x).sin())


@pytest.fixture(autouse=True)
def all_enabled() -> Iterator[None]:
    with normext.enabled():
        yield


@pytest.fixture
def x() -> Tensor:
    return values(2, 3, 5, 5)


def norms(training: bool = True) -> nn.Module:
    torch.manual_seed(1)
    return Norms().train(training)


def by_torch(function: Callable) -> object:
    """What a function returns where nothing is enabled."""
    normext.disable()
    try:
        return function()
    finally:
        normext.enable()


def trained(model: Callable, module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients and buffers of a step."""
    x = x.clone().requires_grad_()
    output = model(x)
    output.cos().sum().backward()
    return [output.detach(), x.grad, *(p.grad for p in module.parameters()), *module.buffers()]


def scripted(module: nn.Module, x: Tensor) -> nn.Module:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    return torch.jit.load(file)


WAYS = {
    "eager": lambda module, x: module,
    "script": scripted,
    "trace": lambda module, x: torch.jit.trace(module, x, check_trace=False),
    "fx": lambda module, x: torch.fx.symbolic_trace(module),
    "export": lambda module, x: torch.export.export(module, (x,)).module(),
    "compile": lambda module, x: torch.compile(module, backend="aot_eager", fullgraph=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_step_of_training(x: Tensor, way: str) -> None:
    module = norms()
    expected = by_torch(lambda: trained(module, module, x))
    again = norms()
    model = WAYS[way](again, x)
    again.load_state_dict(norms().state_dict())  # tracing has updated the statistics
    again.zero_grad()
    kept = model if way in ("script", "trace", "fx", "export") else again
    kept.load_state_dict(norms().state_dict())
    torch.testing.assert_close(trained(model, kept, x), expected, rtol=1e-4, atol=1e-4)


def test_inductor(x: Tensor) -> None:
    """It composes norms itself, of operators that nobody is asked about."""
    module = norms()
    expected = by_torch(lambda: trained(module, module, x))
    again = norms()
    torch.testing.assert_close(trained(torch.compile(again), again, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(x: Tensor, dynamo: bool) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")

    def operators() -> list[str]:
        file = io.BytesIO()
        model = nn.Sequential(nn.BatchNorm2d(3), nn.LayerNorm(5)).eval()
        torch.onnx.export(model, (x,), file, dynamo=dynamo, verbose=False, opset_version=18)
        return [node.op_type for node in onnx.load_from_string(file.getvalue()).graph.node]

    found = operators()
    assert found == by_torch(operators)
    assert "LayerNormalization" in found


def test_fusion(x: Tensor) -> None:
    module = norms(training=False)
    expected = by_torch(lambda: module(x))
    fused = torch.ao.quantization.fuse_modules(copy.deepcopy(module), ["convolution", "batch_norm"])
    assert isinstance(fused.batch_norm, nn.Identity)
    torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.fx.experimental.optimization.fuse(module)(x), expected, rtol=1e-4, atol=1e-4)


def test_distributed_data_parallel(x: Tensor, tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch is built without torch.distributed")
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        module, again = norms(), norms()
        expected = by_torch(lambda: trained(module, module, x))
        torch.testing.assert_close(trained(DistributedDataParallel(again), again, x), expected, rtol=1e-4, atol=1e-4)
    finally:
        torch.distributed.destroy_process_group()


def test_opacus(x: Tensor) -> None:
    """Gradients of each sample, as torch gives them for it alone."""
    opacus = pytest.importorskip("opacus")
    module = norms()
    module.batch_norm = nn.Identity()  # over samples: opacus refuses it
    per_sample = opacus.GradSampleModule(copy.deepcopy(module), loss_reduction="sum")
    per_sample(x).cos().sum().backward()
    for number in range(len(x)):
        module.zero_grad()
        by_torch(lambda n=number: module(x[n : n + 1]).cos().sum().backward())
        for found, expected in zip(per_sample.parameters(), module.parameters(), strict=True):
            torch.testing.assert_close(found.grad_sample[number], expected.grad, rtol=1e-4, atol=1e-4)


def test_checkpoint_and_functional_call(x: Tensor) -> None:
    module, again = norms(), norms()
    expected = by_torch(lambda: trained(module, module, x))[1]
    assert isinstance(stateless.functional_call(again, dict(again.named_parameters()), x), Tensor)
    again = norms()
    found = trained(lambda x: checkpoint(again, x, use_reentrant=False), again, x)[1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_nested_tensors(layout: torch.layout, norm: str) -> None:
    if layout == torch.strided and norm == "rms_norm":
        pytest.skip("torch has none")
    rows = [values(2, 6), values(3, 6)]

    def call() -> list[Tensor]:
        leaves = [row.clone().requires_grad_() for row in rows]
        affine = [torch.ones(6), torch.zeros(6)][: 2 if norm == "layer_norm" else 1]
        output = getattr(F, norm)(torch.nested.as_nested_tensor(leaves, layout=layout), [6], *affine)
        outputs = output.unbind()
        sum(part.cos().sum() for part in outputs).backward()
        return [*outputs, *(leaf.grad for leaf in leaves)]

    torch.testing.assert_close(call(), by_torch(call))


def test_the_fast_path_of_the_encoder() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    encoder, mask = nn.TransformerEncoder(layer, 2), torch.tensor([[False, False, True], [False, False, False]])
    y = values(2, 3, 8)
    with torch.no_grad():
        found = encoder(y, src_key_padding_mask=mask)
        torch.testing.assert_close(found, by_torch(lambda: encoder(y, src_key_padding_mask=mask)))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_without_derivatives(x: Tensor, mode: type) -> None:
    module, again = norms(), norms()
    with mode():
        torch.testing.assert_close(again(x), by_torch(lambda: module(x)), rtol=1e-4, atol=1e-4)


def test_autocast(x: Tensor) -> None:
    module, again = norms(), norms()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = again(x), by_torch(lambda: module(x))
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=4e-2, atol=4e-2)
