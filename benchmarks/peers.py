"""Who is measured. Adding a peer is one entry in PEERS: a name, and a function that imports and returns its norms."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import normext
from benchmarks.cases import Case

Norm = Callable[..., Any]  # an output, or output and sum


@dataclass(frozen=True)
class Peer:
    """An implementation that may be installed.

    Attributes:
        name: as the reports call it.
        load: returns the peer's functions by norm, each with the arguments, in order, of its namesake in
            ``torch.nn.functional``; raises ImportError where the peer is not installed.
        devices: where it runs.

    """

    name: str
    load: Callable[[], dict[str, Norm]]
    devices: tuple[str, ...] = ("cuda",)


def _fused_by_hand() -> dict[str, Norm]:
    """What people write around torch's norms, where normext has one function."""

    def add_layer_norm(x: Tensor, residual: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.layer_norm(total, *arguments), total

    def add_rms_norm(x: Tensor, residual: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, *arguments), total

    def adaptive_layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        normalized = F.layer_norm(x, x.shape[-1:], eps=eps)
        return normalized * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)

    # In place where models have it so.
    def group_norm_silu(*arguments: Any) -> Tensor:
        return F.silu(F.group_norm(*arguments))

    def instance_norm_leaky_relu(*arguments: Any) -> Tensor:
        return F.leaky_relu(F.instance_norm(*arguments), inplace=True)

    def batch_norm_relu(*arguments: Any) -> Tensor:
        return F.relu(F.batch_norm(*arguments), inplace=True)

    def batch_norm_add_relu(x: Tensor, residual: Tensor, *arguments: Any) -> Tensor:
        return F.relu(F.batch_norm(x, *arguments).add_(residual), inplace=True)

    norms = (add_layer_norm, add_rms_norm, adaptive_layer_norm)
    return {
        **{norm.__name__: norm for norm in norms},
        "group_norm + silu": group_norm_silu,
        "instance_norm + leaky_relu": instance_norm_leaky_relu,
        "batch_norm + relu": batch_norm_relu,
        "batch_norm + add + relu": batch_norm_add_relu,
    }


def _eager() -> dict[str, Norm]:
    return {
        "layer_norm": F.layer_norm,
        "rms_norm": F.rms_norm,
        "batch_norm": F.batch_norm,
        "group_norm": F.group_norm,
        **_fused_by_hand(),
    }


def _normext() -> dict[str, Norm]:
    def norm(name: str) -> Norm:
        name, *fused = name.split(" + ")
        function = getattr(normext, name)
        if not fused:
            return function
        activated = functools.partial(function, activation=fused[-1])
        if "add" not in fused:
            return activated
        return lambda x, residual, *arguments: activated(x, *arguments, residual=residual)

    return {name: norm(name) for name in _eager()}


def _compile() -> dict[str, Norm]:
    # compiled for each shape on its own, the best it can do; a wrapper, since Dynamo does not trace torch's functions
    def compiled(norm: Norm) -> Norm:
        return torch.compile(lambda *arguments: norm(*arguments), dynamic=False, fullgraph=True)

    return {name: compiled(norm) for name, norm in _eager().items()}


def _last_dimension(function: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> dict[str, Norm]:
    """LayerNorm from a function of (input, weight, bias, eps) that knows the last dimension only."""

    def layer_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        if len(normalized_shape) > 1:
            raise ValueError("normalizes over the last dimension only")
        return function(input, weight, bias, eps)

    return {"layer_norm": layer_norm}


def _differentiable(
    forward: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]],
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
) -> dict[str, Norm]:
    """LayerNorm from a peer's two kernels, which take rows.

    Args:
        forward: (rows, weight, bias, eps) to (output, mean, rstd).
        backward: (grad_output, rows, weight, mean, rstd) to the gradients of rows, weight and bias.

    """

    class LayerNorm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
            rows = x.reshape(-1, x.shape[-1])
            output, mean, rstd = forward(rows, weight, bias, eps)
            ctx.save_for_backward(rows, weight, mean, rstd)
            return output.view_as(x)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
            rows, weight, mean, rstd = ctx.saved_tensors
            dx, dw, db = backward(grad_output.reshape(rows.shape), rows, weight, mean, rstd)
            return dx.view_as(grad_output), dw.to(weight.dtype), db.to(weight.dtype), None

    return _last_dimension(LayerNorm.apply)


def _onnxruntime() -> dict[str, Norm]:
    # forward only: what an exported model would run. Its threads must not spin beside those of the others.
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    @functools.cache
    def session(eps: float) -> Any:
        names = ("x", "weight", "bias")
        node = helper.make_node("LayerNormalization", names, ["y"], axis=-1, epsilon=eps)
        inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph([node], "layer_norm", inputs, [output])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        output = torch.empty_like(x)
        binding = session(eps).io_binding()
        for name, tensor in {"x": x, "weight": weight, "bias": bias}.items():
            binding.bind_input(name, "cpu", 0, np.float32, tensor.shape, tensor.data_ptr())
        binding.bind_output("y", "cpu", 0, np.float32, output.shape, output.data_ptr())
        session(eps).run_with_iobinding(binding)
        return output

    return _last_dimension(layer_norm)


def _liger() -> dict[str, Norm]:
    from liger_kernel.transformers.functional import liger_layer_norm, liger_rms_norm

    def rms_norm(x: Tensor, _: Sequence[int], weight: Tensor, eps: float) -> Tensor:
        return liger_rms_norm(x, weight, eps, in_place=False)

    return {**_last_dimension(liger_layer_norm), "rms_norm": rms_norm}


def _flash_attention() -> dict[str, Norm]:
    from flash_attn.ops.triton.layer_norm import layer_norm_fn

    return _last_dimension(lambda input, weight, bias, eps: layer_norm_fn(input, weight, bias, eps=eps))


def _apex() -> dict[str, Norm]:
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine, fused_rms_norm_affine

    return {
        "layer_norm": lambda x, shape, weight, bias, eps: fused_layer_norm_affine(x, weight, bias, shape, eps),
        "rms_norm": lambda x, shape, weight, eps: fused_rms_norm_affine(x, weight, shape, eps),
    }


def _quack() -> dict[str, Norm]:
    from quack.rmsnorm import layernorm_bwd, layernorm_fwd, rmsnorm

    # It wants float32 parameters, as mixed-precision training has them: the conversion is not counted.
    as_float = functools.lru_cache(maxsize=2)(Tensor.float)

    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        output, rstd, mean = layernorm_fwd(x, as_float(weight), as_float(bias), eps, return_rstd=True, return_mean=True)
        return output, mean, rstd

    layer_norm = _differentiable(
        forward, lambda dy, x, weight, mean, rstd: layernorm_bwd(x, as_float(weight), dy, rstd, mean, has_bias=True)
    )
    return {**layer_norm, "rms_norm": lambda x, shape, weight, eps: rmsnorm(x, weight, eps=eps)}


def _transformer_engine() -> dict[str, Norm]:
    # Its kernels, not its module, which frees what it has saved at the first backward pass and has no second.
    import transformer_engine.pytorch  # noqa: F401  it loads the library of the next
    import transformer_engine_torch as kernels
    from transformer_engine.pytorch.constants import TE_DType

    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return kernels.layernorm_fwd(x, weight, bias, eps, None, None, TE_DType[x.dtype], 0, False)

    return _differentiable(
        forward, lambda dy, x, weight, mean, rstd: kernels.layernorm_bwd(dy, x, mean, rstd, weight, 0, False)
    )


NORMEXT, EAGER, COMPILE = "normext", "torch eager", "torch.compile"

PEERS = [
    Peer(NORMEXT, _normext, ("cpu", "cuda")),
    Peer(EAGER, _eager, ("cpu", "cuda")),
    Peer(COMPILE, _compile, ("cpu", "cuda")),
    Peer("onnxruntime", _onnxruntime, ("cpu",)),
    Peer("Liger", _liger),
    Peer("flash-attention", _flash_attention),
    Peer("apex", _apex),
    Peer("quack", _quack),
    Peer("TransformerEngine", _transformer_engine),
]


def _check(norms: dict[str, Norm], device: str) -> None:
    """Raises unless an optional peer, called the way we call it, computes what torch does: versions differ."""
    for norm, function in norms.items():
        case = Case(norm, "check", (8, 64))
        leaves = case.leaves(device, gradients=True)
        result, expected = (f(*case.arguments(leaves, training=True)) for f in (function, getattr(F, norm)))
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def installed(device: str) -> tuple[dict[str, dict[str, Norm]], dict[str, str]]:
    """The norms of each peer that runs here, by peer, and for each other peer of this device why it does not."""
    found, missing = {}, {}
    for peer in PEERS:
        if device not in peer.devices:
            continue
        try:
            found[peer.name] = peer.load()
            if peer.name not in (NORMEXT, EAGER, COMPILE):
                _check(found[peer.name], device)
        except Exception as error:  # whatever is wrong with a peer, the run goes on without it
            if peer.name in (NORMEXT, EAGER):
                raise
            found.pop(peer.name, None)
            missing[peer.name] = f"{type(error).__name__}: {error}"
    return found, missing
