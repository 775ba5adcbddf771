"""Both of torch's ONNX exporters take models with normext's norms, and onnxruntime computes what the models do."""

import copy
import io
import itertools
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

import normext

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.filterwarnings("ignore")  # what torch's exporters warn of
ops = torch.ops.normext


TOLERANCES = {  # by dtypes of input and parameters
    (torch.float32, torch.float32): 1e-5,
    (torch.float64, torch.float64): 1e-6,  # the outputs' float32; ONNX's eps is a float32, too
    (torch.float16, torch.float16): 2e-3,
    (torch.bfloat16, torch.bfloat16): 2e-2,
    (torch.float16, torch.float32): 2e-3,
}


class Norms(nn.Module):
    """Every norm in every dtype on the same input, in one model: an export takes seconds."""

    def __init__(self, dtypes: Iterable[tuple[torch.dtype, torch.dtype]]) -> None:
        super().__init__()
        self.dtypes, self.norms = [], nn.ModuleList()
        for dtype, parameters in dtypes:
            norms = [
                normext.LayerNorm(6),
                normext.LayerNorm((5, 6)),
                normext.LayerNorm(6, bias=False),
                normext.LayerNorm(6, elementwise_affine=False),
                normext.LayerNorm(6, weight_offset=1.0),
                normext.RMSNorm(6),
                normext.RMSNorm((5, 6), 1e-3, weight_offset=1.0),
                normext.RMSNorm(6, elementwise_affine=False),
                normext.BatchNorm2d(4),
                normext.BatchNorm2d(4, affine=False),
                normext.BatchNorm2d(4, track_running_stats=False),
                normext.BatchNorm2d(4, affine=False, track_running_stats=False),
                normext.BatchNorm2d(4, activation="relu"),
                normext.GroupNorm(2, 4),
                normext.GroupNorm(2, 4, affine=False, activation="silu"),
                normext.InstanceNorm2d(4, activation=("leaky_relu", 0.1)),
                normext.InstanceNorm2d(4, affine=True, track_running_stats=True),
            ]
            self.norms.extend(norm.to(parameters) for norm in norms)
            self.dtypes += [dtype] * len(norms)
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Takes and returns float32, which numpy and onnxruntime know."""
        return tuple(norm(x.to(dtype)).float() for norm, dtype in zip(self.norms, self.dtypes, strict=True))


class Operators(nn.Module):
    """The operators themselves, with all that they return."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        weight, bias = x[0, 0, 0], x[0, :, 0, 0]
        return (
            ops.layer_norm(x, [5, 6]),
            *ops.layer_norm_forward(x, [6], None, weight, 1e-3),
            ops.rms_norm(x, [5, 6]),
            *ops.rms_norm_forward(x, [6], weight, 1e-3, 1.0),
            ops.batch_norm(x, mean, var, bias),
            *ops.batch_norm_forward(x, mean, var, None, bias, False, 1e-3)[:3],
            *ops.batch_norm_forward(x, None, None, bias, None, True, 1e-3),
            ops.group_norm(x, 4, bias, activation="relu"),
            *ops.group_norm_forward(x, 2, bias, None, 1e-3, "leaky_relu", 0.2),
            ops.instance_norm(x, mean, var, bias, use_input_stats=False, activation="silu"),
        )


class Fused(nn.Module):
    """The norms that do more than normalize."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Takes and returns float32."""
        weight, bias, residual, scale = x[0, 0, 0], x[0, 0, 1], x.sin(), x[:, 0, 0]
        half, statistics = x.half(), (x.mean((0, 2, 3)), x.var((0, 2, 3)))
        return (
            *normext.add_layer_norm(x, residual, [6], weight, bias, 1e-3),
            *normext.add_rms_norm(x, residual, [5, 6], x[0, 0], weight_offset=1.0),
            *(t.float() for t in normext.add_rms_norm(half, residual, [6], weight.half(), 1e-3)),
            normext.adaptive_layer_norm(x, scale, x[:, :, 0], 1e-3),
            normext.adaptive_rms_norm(x, scale),
            normext.adaptive_rms_norm(half, scale, scale, 1e-3).float(),
            normext.batch_norm(x, None, None, training=True, residual=residual, activation="silu"),
            normext.batch_norm(half, *statistics, residual=half.sin(), activation="relu").float(),
            normext.batch_norm(x, None, None, training=True, activation=("leaky_relu", 0.2)),
        )


def exported(model: nn.Module, x: Tensor, dynamo: bool, opset: int | None = None) -> "onnx.ModelProto":
    """The model for any size of batch, exported as the mode it is in says."""
    model = copy.deepcopy(model)
    if dynamo:
        batch = ({0: torch.export.Dim.DYNAMIC},)
        return torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=batch, verbose=False).model_proto
    file, mode = io.BytesIO(), torch.onnx.TrainingMode.PRESERVE
    batch = {"x": {0: "batch"}}
    torch.onnx.export(
        model, (x,), file, dynamo=False, input_names=["x"], dynamic_axes=batch, training=mode, opset_version=opset
    )
    return onnx.load_from_string(file.getvalue())


def assert_computes(proto: "onnx.ModelProto", model: nn.Module, x: Tensor, tolerances: Iterable[float]) -> None:
    """On x, in onnxruntime, twice: nothing is left behind."""
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for _ in range(2):
        actual = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        for a, e, tolerance in zip(actual, copy.deepcopy(model)(x), tolerances, strict=False):
            torch.testing.assert_close(torch.as_tensor(a), e, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_modules(dynamo: bool, training: bool) -> None:
    model = Norms(TOLERANCES).train(training)
    tolerances = [tolerance for tolerance in TOLERANCES.values() for _ in range(len(model.norms) // len(TOLERANCES))]
    x = torch.randn(3, 4, 5, 6) + 1
    proto = exported(model, x, dynamo)
    assert_computes(proto, model, torch.cat([x, 2 * x]), tolerances)
    assert {"LayerNormalization", "BatchNormalization"} <= {node.op_type for node in proto.graph.node}
    assert {node.domain for node in proto.graph.node} == {""}


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_operators(dynamo: bool) -> None:
    model, x = Operators(), torch.randn(3, 4, 5, 6)
    assert_computes(exported(model, x, dynamo), model, torch.cat([x, 2 * x]), itertools.repeat(1e-5))


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_fused(dynamo: bool) -> None:
    model, x = Fused(), torch.randn(3, 4, 5, 6)
    assert_computes(exported(model, x, dynamo), model, torch.cat([x, 2 * x]), itertools.repeat(2e-3))


def test_channels_last_and_exported_programs() -> None:
    model, x = Norms([(torch.float32, torch.float32)]).eval(), torch.randn(3, 4, 5, 6)
    x = x.to(memory_format=torch.channels_last)
    program = torch.export.export(model, (x,))
    proto = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
    assert_computes(proto, model, x, itertools.repeat(1e-5))


@pytest.mark.parametrize("opset", [11, 14, 20])
def test_opsets_of_the_torchscript_exporter(opset: int) -> None:
    model, x = Norms([(torch.float32, torch.float32)]).eval(), torch.randn(3, 4, 5, 6)
    proto = exported(model, x, dynamo=False, opset=opset)
    assert_computes(proto, model, torch.cat([x, x]), itertools.repeat(1e-5))
