"""convert and revert: which norms are computed by normext, that nothing else of a model changes, and what is left."""

import copy
import io
import itertools
import pickle
import re
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

import normext


class Rms(nn.Module):
    """What the RMSNorms below have in common: a weight, and an epsilon called as transformers calls it."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = eps

    def normalized(self, x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()


class LlamaRMSNorm(Rms):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * self.normalized(hidden_states.float()).to(hidden_states.dtype)


class GemmaRMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.eps = 1e-6
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * (1 + self.weight.float())).type_as(x)


class T5LayerNorm(Rms):
    def forward(self, hidden_states: Tensor) -> Tensor:
        y = hidden_states * torch.rsqrt(hidden_states.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (y.to(self.weight.dtype) if self.weight.dtype in (torch.float16, torch.bfloat16) else y)


class OlmoRMSNorm(Rms):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return (self.weight * self.normalized(hidden_states.float())).to(hidden_states.dtype)


class WeightlessRMSNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class CohereLayerNorm(Rms):
    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.float()
        x = self.normalized(x - x.mean(-1, keepdim=True))
        return (self.weight.float() * x).to(hidden_states.dtype)


class ChannelsRMSNorm(Rms):
    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.rms_norm(x, x.shape[-1:], self.weight, self.variance_epsilon).permute(0, 3, 1, 2)


class SpreadRMSNorm(Rms):
    """Over the channels, without a permutation of them."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(1, keepdim=True) + self.variance_epsilon).rsqrt() * self.weight[:, None, None]


class FrozenBatchNorm2d(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        for name, value in {"weight": 1.5, "bias": 0.5, "running_mean": 0.25, "running_var": 2.0}.items():
            self.register_buffer(name, torch.full((size,), value))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (t.view(1, -1, 1, 1) for t in self.buffers())
        scale = weight * (var + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


class LayerNorm2d(nn.LayerNorm):
    __module__ = "timm.layers.norm"  # a library's classes may write torch's forward out again

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class LayerNormFp32(nn.LayerNorm):
    __module__ = "timm.layers.norm"

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), bias, self.eps).to(x.dtype)


class LayerNorm1P(nn.LayerNorm):
    __module__ = "transformers.models.nemotron.modeling_nemotron"

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class BatchNormAct2d(nn.BatchNorm2d):
    __module__ = "timm.layers.norm_act"

    def __init__(self, size: int, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__(size)
        self.drop, self.act = nn.Identity(), act()

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 4
        train = self.training or self.running_mean is None
        if self.training:
            self.num_batches_tracked.add_(1)
        statistics = self.running_mean, self.running_var
        x = F.batch_norm(x, *statistics, self.weight, self.bias, train, self.momentum, self.eps)
        return self.act(self.drop(x))


class GroupNormAct(nn.GroupNorm):
    __module__ = "timm.layers.norm_act"

    def __init__(self, groups: int, size: int, act: type[nn.Module] = nn.SiLU) -> None:
        super().__init__(groups, size)
        self.drop, self.act = nn.Identity(), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)))


class LayerNormOfLibrary(nn.LayerNorm):
    """Adds to torch's and computes as it."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.added = 1


ROWS, IMAGES = (4, 3, 16), (4, 16, 3, 5)
KINDS = [
    (lambda: nn.LayerNorm(16), ROWS),
    (lambda: nn.RMSNorm(16), ROWS),
    (lambda: nn.BatchNorm2d(16), IMAGES),
    (lambda: LayerNormOfLibrary(16), ROWS),
    (lambda: LlamaRMSNorm(16), ROWS),
    (lambda: GemmaRMSNorm(16), ROWS),
    (lambda: T5LayerNorm(16), ROWS),
    (lambda: OlmoRMSNorm(16, eps=1e-5), ROWS),
    (lambda: WeightlessRMSNorm(), ROWS),
    (lambda: CohereLayerNorm(16), ROWS),
    (lambda: ChannelsRMSNorm(16), IMAGES),
    (lambda: SpreadRMSNorm(16), IMAGES),
    (lambda: FrozenBatchNorm2d(16), IMAGES),
    (lambda: LayerNorm2d(16), IMAGES),
    (lambda: LayerNormFp32(16), ROWS),
    (lambda: LayerNorm1P(16), ROWS),
    (lambda: nn.GroupNorm(4, 16), IMAGES),
    (lambda: nn.InstanceNorm2d(16, affine=True, track_running_stats=True), IMAGES),
    (lambda: GroupNormAct(4, 16), IMAGES),
    (lambda: BatchNormAct2d(16), IMAGES),
    (lambda: BatchNormAct2d(16, nn.PReLU), IMAGES),
]
kinds = pytest.mark.parametrize(
    ("make", "shape"), KINDS, ids=lambda value: type(value()).__name__ if callable(value) else None
)


class Operators(TorchDispatchMode):
    """Takes down which operators are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def by_normext(module: nn.Module, x: Tensor) -> bool:
    """Whether a call of the module comes to a kernel of normext's."""
    with Operators() as operators:
        module(x)
    return any(name.startswith("normext::") for name in operators.names)


def snapshot(model: nn.Module) -> tuple[object, ...]:
    """What is to stay: objects by identity, state by name."""
    tensors = [(name, id(t)) for name, t in (*model.named_parameters(), *model.named_buffers())]
    return tensors, list(model.state_dict()), [id(m) for m in model.modules()], [m.training for m in model.modules()]


def drawn(module: nn.Module) -> nn.Module:
    """With parameters that are neither ones nor zeros."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(0.5, 1.5)
    return module


@kinds
def test_converted_computes_the_same_and_back(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = drawn(nn.Sequential(make()))
    twin, cls, before = copy.deepcopy(model), type(model[0]), snapshot(model)
    generator = torch.get_rng_state()
    report = normext.convert(model)
    assert torch.equal(torch.get_rng_state(), generator)
    assert report.converted == {"0": cls} and not report.left
    assert isinstance(model[0], cls) and type(model[0]).__name__ == cls.__name__
    assert snapshot(model) == before
    assert by_normext(copy.deepcopy(model), torch.randn(shape))
    for _ in range(2):  # training, then evaluation with the statistics that it has left
        x = torch.randn(shape, requires_grad=True)
        outputs = [m(x) for m in (model, twin)]
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5, check_stride=True)
        gradient = torch.randn(shape)
        grads = [
            torch.autograd.grad(y, [x, *m.parameters()], gradient) for y, m in zip(outputs, (model, twin), strict=True)
        ]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.state_dict(), twin.state_dict())
        model.eval(), twin.eval()
    assert normext.revert(model) is model
    assert type(model[0]) is cls
    assert vars(model[0]).keys() == vars(twin[0]).keys()
    assert not by_normext(model, torch.randn(shape))


@kinds
def test_dtypes_of_outputs_stay(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    for parameters, given in itertools.product((torch.float32, torch.bfloat16, torch.float64), repeat=2):
        module = drawn(make()).to(parameters)
        converted = copy.deepcopy(module)
        normext.convert(converted)
        x = torch.randn(shape, dtype=given)
        if (
            isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d))
            and parameters != given
        ):
            continue  # normext's own norms: what they mix is tested elsewhere
        expected = module(x)
        torch.testing.assert_close(converted(x), expected, rtol=2e-2, atol=2e-2)


def test_a_model_of_torch_gets_the_classes_of_normext_and_nothing_else_changes() -> None:
    shared = nn.LayerNorm(8)
    model = nn.Sequential(
        nn.Linear(8, 8), shared, nn.BatchNorm1d(8), nn.Sequential(shared, nn.RMSNorm(8)), normext.RMSNorm(8)
    )
    model[2].eval()
    model[1].weight.requires_grad_(False)
    calls = []
    model[1].register_forward_hook(lambda module, args, output: calls.append(module))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = snapshot(model)
    report = normext.convert(model)
    assert [type(m) for m in model.modules() if "normext" in type(m).__module__] == [
        normext.LayerNorm, normext.BatchNorm1d, normext.RMSNorm, normext.RMSNorm
    ]  # fmt: skip
    assert report.converted == {"1": nn.LayerNorm, "2": nn.BatchNorm1d, "3.1": nn.RMSNorm}
    assert snapshot(model) == before and not model[1].weight.requires_grad
    model(torch.randn(4, 8)).sum().backward()
    assert calls == [shared, shared]
    bias = shared.bias.clone()
    optimizer.step()
    assert not torch.equal(shared.bias, bias)
    assert not normext.convert(model).converted
    normext.revert(model)
    assert (type(shared), type(model[2]), type(model[3][1])) == (nn.LayerNorm, nn.BatchNorm1d, nn.RMSNorm)
    assert type(model[4]) is normext.RMSNorm  # it was normext's before
    assert snapshot(model) == before


@pytest.mark.parametrize("make", [lambda: nn.LayerNorm(16), lambda: LlamaRMSNorm(16), lambda: LayerNormOfLibrary(16)])
def test_copies_and_pickles(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(drawn(make()))
    cls, x = type(model[0]), torch.randn(ROWS)
    normext.convert(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert by_normext(twin, x)
        torch.testing.assert_close(twin(x), model(x))
        assert type(normext.revert(twin)[0]) is cls
    assert by_normext(model, x)


class DtypeRMSNorm(nn.Module):
    """Its epsilon is the dtype's."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * (x.pow(2).mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).rsqrt()


def test_what_a_module_rounds_is_no_difference() -> None:
    """Groups of one or two values lose more digits in torch's float32 than any other norm."""
    for channels in (32, 64):
        assert not normext.convert(GroupNormAct(32, channels, nn.Identity)).left
    assert not normext.convert(DtypeRMSNorm(16)).converted


def test_models_without_data_are_converted() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.LayerNorm(16), LlamaRMSNorm(16), WeightlessRMSNorm())
        assert len(normext.convert(model).converted) == 3
    assert model(torch.randn(ROWS, device="meta")).is_meta


def test_a_module_itself() -> None:
    norm = LlamaRMSNorm(16)
    assert normext.convert(norm).converted == {"": LlamaRMSNorm}
    assert by_normext(norm, torch.randn(ROWS))
    assert type(normext.revert(norm)) is LlamaRMSNorm


@pytest.mark.parametrize("first", ["parametrized", "converted"])
def test_parametrized(first: str) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    norm, x = drawn(nn.LayerNorm(16)), torch.randn(ROWS)
    expected = F.layer_norm(x, [16], 2 * norm.weight, norm.bias)
    steps = [lambda: parametrize.register_parametrization(norm, "weight", Doubled()), lambda: normext.convert(norm)]
    for step in steps if first == "parametrized" else steps[::-1]:
        step()
    assert by_normext(norm, x)
    torch.testing.assert_close(norm(x), expected)
    if first == "parametrized":
        normext.revert(norm)
        torch.testing.assert_close(norm(x), expected)
        parametrize.remove_parametrizations(norm, "weight")
    else:
        parametrize.remove_parametrizations(norm, "weight")
        normext.revert(norm)
    assert type(norm) is nn.LayerNorm
    torch.testing.assert_close(norm(x), expected)


class Doubling(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class DoublingRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return 2 * super().forward(hidden_states)


class ClampedRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states.clamp(-100, 100))


class DetachedRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states
        return self.weight * x * (x.detach().pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()


class DroppingRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.dropout(super().forward(hidden_states), 0.5, self.training)


class OutsideRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        size = hidden_states.pow(2).mean(-1, keepdim=True).sqrt()
        return self.weight * hidden_states / (size + self.variance_epsilon)


class RememberingRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        self.last = hidden_states
        return super().forward(hidden_states)


class GatedRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(hidden_states if gate is None else hidden_states * gate)


class PerHeadLayerNorm(CohereLayerNorm):
    def __init__(self) -> None:
        super().__init__(16)
        self.weight = nn.Parameter(torch.ones(3, 16))


def replaced() -> nn.Module:
    norm = nn.LayerNorm(16)
    norm.forward = lambda input: input
    return norm


def parametrized() -> nn.Module:
    norm = LlamaRMSNorm(16)
    parametrize.register_parametrization(norm, "weight", nn.Identity())
    return norm


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Doubling(16), "it overrides forward of torch.nn.LayerNorm"),
        (replaced, "its forward was replaced on the object"),
        (parametrized, "it is parametrized"),
        (lambda: torch.jit.script(nn.LayerNorm(16)), "it is scripted"),
        (lambda: nn.LayerNorm(16, dtype=torch.complex64), "weight is complex64"),
        (lambda: nn.LocalResponseNorm(2), "normext has no such norm"),
        (lambda: GatedRMSNorm(16), "its forward takes more than a tensor: gate"),
        *(
            (lambda cls=cls: cls(16), "it computes something else")
            for cls in (DoublingRMSNorm, ClampedRMSNorm, DetachedRMSNorm, DroppingRMSNorm, OutsideRMSNorm)
        ),
        (lambda: PerHeadLayerNorm(), "it computes something else"),
        (lambda: RememberingRMSNorm(16), "it takes other inputs"),
    ],
)
def test_left_and_why(make: Callable[[], nn.Module], why: str) -> None:
    norm = make()
    cls, attributes = type(norm), list(vars(norm))
    report = normext.convert(nn.ModuleDict({"norm": norm}))
    assert not report.converted
    assert report.left["norm"].cls is cls and report.left["norm"].why.startswith(why)
    assert cls.__qualname__ in str(report) and why in str(report)
    assert type(norm) is cls and list(vars(norm)) == attributes


def test_blocks_that_are_called_norms_are_not() -> None:
    class PreNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    report = normext.convert(PreNorm())
    assert report.converted == {"norm": nn.LayerNorm} and not report.left
    assert str(normext.convert(nn.Linear(2, 2))) == "no norms"


def test_the_report_is_a_table_by_class() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(4), Doubling(8))
    lines = str(normext.convert(model)).splitlines()
    assert [line.split()[0] for line in lines] == ["2", "1"]
    assert "LayerNorm" in lines[0] and "converted" in lines[0]
    assert "Doubling" in lines[1] and "left: it overrides" in lines[1]


def test_epsilon_is_read_where_it_is() -> None:
    norm = LlamaRMSNorm(16)
    normext.convert(norm)
    norm.variance_epsilon = 1.0
    x = torch.randn(ROWS)
    torch.testing.assert_close(norm(x), F.rms_norm(x, [16], norm.weight, 1.0))


def test_unusual_calls_are_the_classes_own() -> None:
    norm = LlamaRMSNorm(16)
    normext.convert(norm)
    x = torch.randn(ROWS)
    torch.testing.assert_close(norm(hidden_states=x), norm(x))
    with pytest.raises(TypeError, match=r"LlamaRMSNorm\.forward"):
        norm(x, x)


def test_compiled_programs_follow() -> None:
    model = nn.Sequential(nn.LayerNorm(16), LlamaRMSNorm(16))
    compiled, x = torch.compile(model, backend="eager", fullgraph=True), torch.randn(ROWS)
    expected = compiled(x)
    normext.convert(model)
    torch.testing.assert_close(compiled(x), expected)
    graph = torch.export.export(model, (x,)).graph
    assert [n.target for n in graph.nodes if "normext" in str(n.target)] == [
        torch.ops.normext.layer_norm.default, torch.ops.normext.rms_norm.default
    ]  # fmt: skip
    normext.revert(model)
    torch.testing.assert_close(compiled(x), expected)


def test_tracers_and_scripts() -> None:
    model, x = nn.Sequential(nn.LayerNorm(16), LlamaRMSNorm(16)), torch.randn(ROWS)
    expected = model(x)
    normext.convert(model)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), expected)
    torch.testing.assert_close(torch.jit.script(model[0])(x), model[0](x))
    with pytest.raises(RuntimeError, match="LlamaRMSNorm is computed by normext; trace it"):
        torch.jit.script(model)
    torch.testing.assert_close(torch.jit.script(normext.revert(nn.Sequential(model[0])))(x), model[0](x))


def test_one_s_own_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fast(Doubling):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * normext.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    monkeypatch.setattr(sys.modules["normext.conversion.convert"], "_converters", {})
    normext.register(Doubling, lambda module: Fast if module.eps == 1e-5 else "its epsilon is unusual")
    model, x = nn.Sequential(Doubling(16), Doubling(16, eps=0.1)), torch.randn(ROWS)
    expected = model(x)
    report = normext.convert(model)
    assert report.converted == {"0": Doubling} and report.left["1"].why == "its epsilon is unusual"
    assert type(model[0]) is Fast
    torch.testing.assert_close(model(x), expected)
    assert type(normext.revert(model)[0]) is Doubling
    normext.register(Doubling, lambda module: nn.LayerNorm)
    with pytest.raises(TypeError, match="not a class derived from it"):
        normext.convert(model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: normext.convert([nn.LayerNorm(8)]),
            r"convert\(\): argument 'model' must be torch.nn.Module, not list",
        ),
        (lambda: normext.revert(None), r"revert\(\): argument 'model' must be torch.nn.Module, not NoneType"),
        (lambda: normext.register(nn.LayerNorm(8), print), r"register\(\): argument 'cls' must be a subclass"),
    ],
)
def test_errors(call: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def norms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if re.match("(?!Conv).*Norm(Act)?([12]d)?$", type(m).__name__)]


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "vit_tiny_patch16_224", "regnetx_002"])
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    side = 224 if "vit" in name else 64
    check(timm.create_model(name, num_classes=10), torch.randn(2, 3, side, side))


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3", "bert"])
def test_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CONFIG_MAPPING[name](
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=50, pad_token_id=0,
    )  # fmt: skip
    check(transformers.AutoModel.from_config(config), torch.randint(1, 50, (2, 7)))


def check(model: nn.Module, x: Tensor) -> None:
    """All norms of a model are converted, and it does what it did."""
    twin = copy.deepcopy(model)
    report = normext.convert(model)
    assert not report.left and len(report.converted) == len(norms(twin)) > 0
    outputs = []
    for m in (model, twin):
        torch.manual_seed(0)  # of dropout
        outputs.append(m(x))
    outputs = [y if isinstance(y, Tensor) else y.last_hidden_state for y in outputs]
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)
    for y in outputs:
        y.square().mean().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()), rtol=1e-3, atol=1e-3)
    normext.revert(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in twin.modules()]


def test_activations_are_computed_with_the_norm() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(
        nn.Sequential(nn.GroupNorm(2, 16), nn.SiLU()),
        nn.Sequential(nn.InstanceNorm2d(16, affine=True), nn.LeakyReLU(0.2), nn.ReLU()),
        GroupNormAct(4, 16),
        nn.Sequential(nn.GroupNorm(4, 16), shared, nn.GroupNorm(2, 16), shared),  # in two places: it stays
        nn.Sequential(nn.GroupNorm(4, 16), nn.Tanh()),  # none that norms know
        nn.Sequential(nn.GroupNorm(4, 16), nn.SiLU()),
        nn.Sequential(nn.BatchNorm2d(16), nn.ReLU()),
        BatchNormAct2d(16, nn.SiLU),
    )
    hooked = []
    model[5][1].register_forward_pre_hook(lambda module, args: hooked.append(args))
    drawn(model)
    twin, x = copy.deepcopy(model), torch.randn(IMAGES)
    report = normext.convert(model, fuse=True)
    assert report.fused == {"0.0": "silu", "1.0": ("leaky_relu", 0.2), "2": "silu", "6.0": "relu", "7": "silu"}
    assert len(report.converted) == 9 and "converted, with 'silu'" in str(report)
    assert all(isinstance(a, type(b)) for a, b in zip(model.modules(), twin.modules(), strict=True))
    assert list(model.state_dict()) == list(twin.state_dict())
    for m in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model[:2]))):
        y = x
        for ours, theirs in zip(m, twin, strict=False):
            y, expected = ours(y), theirs(y)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    torch.autograd.backward([model(x).square().mean(), twin(x).square().mean()])
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    assert hooked
    normext.revert(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in twin.modules()]
    assert all(vars(a).keys() == vars(b).keys() for a, b in zip(model.modules(), twin.modules(), strict=True))
    torch.testing.assert_close(model(x), twin(x))


def test_attributes_that_are_called_activation_are_none_of_normexts() -> None:
    norm, named = LayerNormOfLibrary(16), nn.BatchNorm2d(16)
    norm.activation, named.activation = nn.Tanh(), "relu"
    report = normext.convert(nn.Sequential(norm, named))
    assert list(report.converted) == ["0"] and report.left["1"].why == "it has an attribute that is called activation"


def test_lazy_norms_become_what_they_would_have() -> None:
    model = nn.Sequential(nn.LazyBatchNorm2d())
    normext.convert(model)
    model(torch.randn(IMAGES))
    assert type(model[0]) is normext.BatchNorm2d
    assert type(normext.revert(model)[0]) is nn.BatchNorm2d
