"""What TorchScript, torch.fx and the tools built on them make of the norms: what they make of torch.nn's."""

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import MODULES
from inputs import parameters, running, values
from torch import Tensor, fx, nn
from torch.ao.nn.intrinsic import BNReLU2d
from torch.ao.quantization import fuse_modules, fuse_modules_qat, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, fuse_fx, prepare_fx
from torch.fx.experimental import optimization

import normext

modules = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


@pytest.fixture(autouse=True)
def quiet() -> None:
    """TorchScript and eager quantization say at every use that they are to go away."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def check_same(module: nn.Module, twin: nn.Module, shape: list[int], device: str) -> None:
    """Two steps of training, or of evaluation, give the same numbers, gradients and buffers."""
    for _ in range(2):
        x = values(*shape, device=device)
        inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
        outputs = module(inputs[0]), twin(inputs[1])
        for output in outputs:
            output.square().sin().sum().backward()
        torch.testing.assert_close(outputs[1], outputs[0])
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
        torch.testing.assert_close([p.grad for p in twin.parameters()], [p.grad for p in module.parameters()])
        torch.testing.assert_close(dict(twin.named_buffers()), dict(module.named_buffers()))


# TorchScript


@modules
@modes
@pytest.mark.parametrize("saved", [False, True], ids=["scripted", "saved"])
def test_script(device: str, saved: bool, training: bool, make: Callable) -> None:
    module, shape = make()
    module = module.to(device).train(training)
    scripted = torch.jit.script(copy.deepcopy(module))
    if saved:
        file = io.BytesIO()
        torch.jit.save(scripted, file)
        file.seek(0)
        scripted = torch.jit.load(file)
    check_same(module, scripted, shape, device)


def test_script_checks_dimensions(device: str) -> None:
    with pytest.raises(torch.jit.Error, match=r"expected 4D input \(got 3D input\)"):
        torch.jit.script(normext.BatchNorm2d(3, device=device))(torch.randn(2, 3, 4, device=device))


def test_script_of_functions(device: str) -> None:
    def function(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        y = normext.batch_norm(x, mean, var, weight, bias, training=True, momentum=0.3, eps=1e-3)
        y = y + normext.batch_norm(x, mean, var, weight)
        y = y + normext.layer_norm(x, x.shape[1:], weight=None, eps=1e-3)
        return y + normext.layer_norm(x, [3], weight, bias)

    scripted, x = torch.jit.script(function), values(4, 3, device=device)
    statistics = running(3, device=device)
    twins = [t.clone() for t in statistics]
    affine = parameters((True, True), 3, device=device)
    torch.testing.assert_close(scripted(x, *twins, *affine), function(x, *statistics, *affine))
    torch.testing.assert_close(twins, list(statistics))


def test_script_of_activations(device: str) -> None:
    def function(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        y = normext.batch_norm(x, mean, var, residual=x, activation=("leaky_relu", 0.3))
        y = y + normext.batch_norm(x, mean, var, activation="leaky_relu")
        y = y + normext.group_norm(x, 2, activation=("leaky_relu", 0.3)) + normext.group_norm(x, 2, activation="silu")
        y = y + normext.instance_norm(x, activation=("leaky_relu", 0.3)) + normext.instance_norm(x, activation="relu")
        return y + normext.group_norm(x, 2) + normext.instance_norm(x)

    scripted, x = torch.jit.script(function), values(3, 4, 5, device=device)
    statistics = running(4, device=device)
    torch.testing.assert_close(scripted(x, *statistics), function(x, *statistics))


@pytest.mark.parametrize("name", ["gelu", "relu"])
def test_script_takes_known_activations_alone(device: str, name: str) -> None:
    def function(x: Tensor, name: str) -> Tensor:
        return normext.group_norm(x, 2, activation=(name, 0.5))

    with pytest.raises(
        torch.jit.Error, match=rf"expected activation to be None, 'relu', .*, but got \('{name}', 0.5\)"
    ):
        torch.jit.script(function)(values(3, 4, 5, device=device), name)


@modules
@modes
def test_trace(device: str, training: bool, make: Callable) -> None:
    module, shape = make()
    module = module.to(device).train(training)
    traced = torch.jit.trace(copy.deepcopy(module), values(*shape, device=device), check_trace=False)
    traced.load_state_dict(module.state_dict())  # tracing ran it once
    check_same(module, traced, shape, device)


# torch.fx


class Network(nn.Module):
    """Norms at several depths, and calls of the functions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), normext.BatchNorm2d(4), nn.ReLU())
        self.block = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), normext.BatchNorm2d(4)), nn.Flatten(2))
        self.sequence, self.norm = normext.BatchNorm1d(4), normext.LayerNorm(16)
        self.volume = normext.BatchNorm3d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.sequence(self.block(self.stem(x))))
        x = self.volume(x.view(-1, 4, 2, 2, 4)).flatten(2)
        return normext.layer_norm(x, [16], self.norm.weight, eps=1e-3).tanh()


NORMS = {"stem.1", "block.0.1", "sequence", "norm", "volume"}


def called(graph: fx.Graph) -> set[str]:
    """The modules that a graph calls."""
    return {node.target for node in graph.nodes if node.op == "call_module"}


@modes
def test_symbolic_trace_takes_norms_for_leaves(device: str, training: bool) -> None:
    network = Network().to(device).train(training)
    traced = fx.symbolic_trace(copy.deepcopy(network))
    assert called(traced.graph) >= NORMS
    assert normext.layer_norm in {node.target for node in traced.graph.nodes}
    check_same(network, traced, [5, 3, 6, 6], device)


def test_functions_called_with_a_proxy(device: str) -> None:
    def function(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor) -> Tensor:
        return normext.layer_norm(normext.batch_norm(x, mean, var, training=False), (3,), weight)

    traced = fx.symbolic_trace(function)
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets == [normext.batch_norm, normext.layer_norm]
    arguments = values(4, 3, device=device), *running(3, device=device), torch.randn(3, device=device)
    assert torch.equal(traced(*arguments), function(*arguments))


class Doubled(normext.LayerNorm):
    """A user's own norm."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class LeavesNothing(fx.Tracer):
    """A tracer that looks into every module."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False


@pytest.mark.parametrize("norm", [normext.LayerNorm, Doubled])
def test_what_is_looked_into(device: str, norm: type) -> None:
    # A root, a class derived from a norm's, and everything if the tracer says so: as with torch.nn's norms.
    module = nn.Sequential(norm(5)).to(device)
    x = values(4, 5, device=device)
    looked_into = [fx.symbolic_trace(module[0]), fx.GraphModule(module, LeavesNothing().trace(module))]
    if norm is Doubled:
        looked_into.append(fx.symbolic_trace(module))
    for traced in looked_into:
        assert not called(traced.graph)
        assert torch.equal(traced(x), module(x))


class NodePathTracer(fx.Tracer):
    """As feature extractors have it: it takes some classes for leaves, and knows each node's module."""

    def __init__(self, leaf_modules: tuple[type, ...] = ()) -> None:
        super().__init__()
        self.leaf_modules, self.current, self.names = leaf_modules, "", {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaf_modules) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        previous, self.current = self.current, self.path_of_module(m)
        try:
            if self.is_leaf_module(m, self.current):
                return self.create_proxy("call_module", self.current, args, kwargs)
            return forward(*args, **kwargs)
        finally:
            self.current = previous

    def create_proxy(self, kind: str, target: Any, args: tuple, kwargs: dict, *rest: Any, **options: Any) -> fx.Proxy:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        self.names[proxy.node] = self.current if kind == "call_module" else f"{self.current}.{proxy.node}"
        return proxy


@pytest.mark.parametrize("leaf_modules", [(), (nn.Sequential,), (normext.LayerNorm,)])
def test_feature_extraction(device: str, leaf_modules: tuple[type, ...]) -> None:
    network = Network().to(device).eval()
    tracer = NodePathTracer(leaf_modules)
    graph = tracer.trace(network)
    found = set(tracer.names.values())
    assert found >= ({"sequence", "norm", "volume", "block"} if nn.Sequential in leaf_modules else NORMS)
    output = next(node for node in graph.nodes if node.op == "output")
    (features,) = (node for node, name in tracer.names.items() if name == "norm")
    output.args = (features,)
    extractor, x = fx.GraphModule(network, graph), torch.randn(2, 3, 6, 6, device=device)
    extractor.graph.eliminate_dead_code()
    extractor.recompile()
    assert "volume" not in called(extractor.graph)
    assert torch.equal(extractor(x), network.norm(network.sequence(network.block(network.stem(x)))))


# Fusion and quantization, which look modules up by their exact class


def trained(device: str) -> nn.Module:
    """The network, with running statistics unlike those it began with."""
    network = Network().to(device)
    network(values(7, 3, 6, 6, device=device))
    return network.eval()


@pytest.mark.parametrize("fuse", [optimization.fuse, fuse_fx])
def test_fusion_by_fx_leaves_norms_as_they_are(device: str, fuse: Callable) -> None:
    network, x = trained(device), values(2, 3, 6, 6, device=device)
    fused = fuse(copy.deepcopy(network))
    torch.testing.assert_close(fused(x), network(x))
    assert called(fused.graph) >= NORMS


@pytest.mark.parametrize("fuse", [optimization.fuse, fuse_fx])
def test_fusion_by_fx_of_norms_given_back_to_torch(device: str, fuse: Callable) -> None:
    # As the README has it.
    network, x = trained(device), values(2, 3, 6, 6, device=device)
    twin = copy.deepcopy(network)
    for module in twin.modules():
        if type(module).__module__ == normext.LayerNorm.__module__:
            module.__class__ = getattr(nn, type(module).__name__)
    fused = fuse(twin)
    torch.testing.assert_close(fused(x), network(x))
    assert not called(fused.graph) & {"stem.1", "block.0.1"}


def test_quantization_fx() -> None:
    network, x = trained("cpu"), values(2, 3, 6, 6)
    prepared = prepare_fx(copy.deepcopy(network), get_default_qconfig_mapping(), (x,))
    torch.testing.assert_close(prepared(x), network(x))
    quantized = convert_fx(prepared)(x)
    assert (quantized - network(x)).abs().mean() < 0.1


CONVOLUTIONS = [(nn.Conv1d, "BatchNorm1d"), (nn.Conv2d, "BatchNorm2d"), (nn.Conv3d, "BatchNorm3d")]
CONVOLUTIONS += [(nn.ConvTranspose2d, "BatchNorm2d"), (nn.Linear, "BatchNorm1d")]


@pytest.mark.parametrize(("before", "norm"), CONVOLUTIONS)
@pytest.mark.parametrize("relu", [False, True])
def test_fuse_modules(device: str, relu: bool, before: type, norm: str) -> None:
    if relu and before in (nn.Linear, nn.ConvTranspose2d):
        pytest.skip("torch fuses no ReLU into these")
    dimensions = 0 if before is nn.Linear else int(norm[-2])
    first = before(3, 4) if before is nn.Linear else before(3, 4, 2)
    x, names = values(5, 3, *[4] * dimensions, device=device), ["0", "1", "2"][: 2 + relu]
    models = []
    for library in (nn, normext):
        model = nn.Sequential(copy.deepcopy(first), getattr(library, norm)(4), *[nn.ReLU()] * relu).to(device)
        model(x)
        fused = fuse_modules(model.eval(), names)
        torch.testing.assert_close(fused(x), model(x))
        models.append(fused)
    assert [type(m) for m in models[1].modules()] == [type(m) for m in models[0].modules()]


def test_fuse_modules_with_a_norm_first(device: str) -> None:
    model = nn.Sequential(normext.BatchNorm2d(3), nn.ReLU()).to(device).eval()
    x = values(2, 3, 4, 4, device=device)
    fused = fuse_modules(model, ["0", "1"])
    assert type(fused[0]) is BNReLU2d
    torch.testing.assert_close(fused(x), model(x))


def test_fuse_modules_for_training(device: str) -> None:
    models = []
    for library in (nn, normext):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 2), library.BatchNorm2d(4), nn.ReLU()).to(device).train()
        models.append(fuse_modules_qat(model, ["0", "1", "2"]))
    assert [type(m) for m in models[1].modules()] == [type(m) for m in models[0].modules()]
    check_same(*models, [5, 3, 4, 4], device)
