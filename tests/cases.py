"""Every combination of norm, mode and parameters, beside the same norm spelled in torch's elementary operations, and
modules.
"""

from dataclasses import dataclass
from typing import Any

import torch
from inputs import AFFINE, BATCH_NORM_TAKES_BIAS, affine_name, parameters, values
from torch import Tensor
from torch.nn import functional as F

import normext


def layer_norm(
    x: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """LayerNorm whose derivatives of every order are torch's own."""
    dims = tuple(range(-len(normalized_shape), 0))
    centered = x - x.mean(dims, keepdim=True)
    output = centered * (centered.square().mean(dims, keepdim=True) + eps).rsqrt()
    output = output if weight is None else output * weight
    return output if bias is None else output + bias


def rms_norm(
    x: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    weight_offset: float = 0.0,
) -> Tensor:
    """RMSNorm likewise."""
    dims = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    output = x * (x.square().mean(dims, keepdim=True) + eps).rsqrt()
    return output if weight is None else output * (weight + weight_offset)


def add_layer_norm(x: Tensor, residual: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    """LayerNorm of a sum, likewise."""
    return layer_norm(x + residual, *arguments), x + residual


def add_rms_norm(x: Tensor, residual: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    """RMSNorm of a sum, likewise."""
    return rms_norm(x + residual, *arguments), x + residual


def adaptive_layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm with a scale and a shift for each sample, likewise."""
    return layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale.unsqueeze(-2)) + shift.unsqueeze(-2)


def adaptive_rms_norm(x: Tensor, scale: Tensor, shift: Tensor | None = None, eps: float | None = None) -> Tensor:
    """RMSNorm with a scale for each sample, likewise."""
    output = rms_norm(x, x.shape[-1:], eps=eps) * (1 + scale.unsqueeze(-2))
    return output if shift is None else output + shift.unsqueeze(-2)


def activate(z: Tensor, activation: str | tuple[str, float] | None) -> Tensor:
    """What follows a channel norm, by torch's own."""
    if activation is None:
        return z
    if activation == "silu":
        return z * z.sigmoid()
    name, *slope = activation if isinstance(activation, tuple) else (activation,)
    return getattr(F, name)(z, *slope)


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | tuple[str, float] | None = None,
) -> Tensor:
    """BatchNorm likewise. It leaves the running statistics alone."""

    def per_channel(t: Tensor) -> Tensor:
        return t.view(-1, *[1] * (x.dim() - 2))

    dims = tuple(i for i in range(x.dim()) if i != 1)
    mean = x.mean(dims) if training else running_mean
    centered = x - per_channel(mean)
    var = centered.square().mean(dims) if training else running_var
    output = centered * per_channel((var + eps).rsqrt())
    output = output if weight is None else output * per_channel(weight)
    output = output if bias is None else output + per_channel(bias)
    return activate(output if residual is None else output + residual, activation)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | tuple[str, float] | None = None,
) -> Tensor:
    """GroupNorm likewise."""
    grouped = x.unflatten(1, (num_groups, -1))
    normalized = layer_norm(grouped, list(grouped.shape[2:]), eps=eps).flatten(1, 2)
    weight, bias = (None if t is None else t.view(-1, *[1] * (x.dim() - 2)) for t in (weight, bias))
    output = normalized if weight is None else normalized * weight
    return activate(output if bias is None else output + bias, activation)


def instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | tuple[str, float] | None = None,
) -> Tensor:
    """InstanceNorm likewise, by its own statistics."""
    return group_norm(x, x.shape[1], weight, bias, eps, activation=activation)


@dataclass(frozen=True)
class Case:
    """A norm as a function of its differentiable inputs: x, a residual if it adds one, then weight and bias (or scale
    and shift) where there are any.
    """

    norm: str
    affine: tuple[bool, bool]
    training: bool = True
    activation: str | tuple[str, float] | None = None
    residual: bool = False  # BatchNorm's, which is optional

    def __str__(self) -> str:
        mode = ["training" if self.training else "evaluation"] if self.norm == "batch_norm" else []
        after = ["residual"] * self.residual + ([] if self.activation is None else [str(self.activation)])
        return "-".join([self.norm, *mode, affine_name(self.affine), *after])

    def options(self, *inputs: Tensor) -> dict[str, Any]:
        """Arguments by keyword."""
        residual = {"residual": inputs[1]} if self.residual else {}
        return residual if self.activation is None else {**residual, "activation": self.activation}

    @property
    def adds(self) -> bool:
        """Whether a residual comes before the norm, which returns the sum, too."""
        return self.norm.startswith("add")

    @property
    def data(self) -> int:
        """How many of the inputs are as large as x."""
        return 2 if self.adds or self.residual else 1

    @property
    def adapts(self) -> bool:
        """Whether there is a scale in the place of the weight, for each sample."""
        return self.norm.startswith("adaptive")

    @property
    def operator(self) -> str:
        """What its operators are called, before _forward and _backward."""
        fused = {"instance_norm": "group_norm"} | ({self.norm: "add_norm"} if self.adds else {})
        return "adaptive_norm" if self.adapts else fused.get(self.norm, self.norm)

    @property
    def backward(self) -> str:
        """What the operator of its backward is called."""
        through = "_activation" if self.norm == "batch_norm" and self.activation is not None else ""
        return f"{self.operator}{through}_backward"

    def inputs(self, device: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        """Fresh leaves that require gradients: x is [4, 3, 5], for GroupNorm [3, 4, 5]; parameters are of its channels
        or of all sizes but the first.

        Adaptive norms are over as many elements: x is [4, 3, 15], and scale and shift are [4, 15].
        """
        sizes = (3, 4, 5) if self.norm == "group_norm" else (4, 3, 15) if self.adapts else (4, 3, 5)
        data = [values(*sizes, dtype=dtype, device=device) for _ in range(self.data)]
        over_rows = self.norm.endswith(("layer_norm", "rms_norm"))
        shape = (4, 15) if self.adapts else sizes[1:] if over_rows else sizes[1:2]
        tensors = (*data, *parameters(self.affine, *shape, dtype=dtype, device=device))
        return tuple(t.requires_grad_() for t in tensors if t is not None)

    def doubled(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The inputs for twice the batch."""
        with_batch = len(inputs) if self.adapts else self.data
        return tuple(torch.cat([t, t]) if i < with_batch else t for i, t in enumerate(inputs))

    def ours(self, *inputs: Tensor) -> Tensor:
        """The norm by normext."""
        return self._call(normext, inputs)

    def plain(self, *inputs: Tensor) -> Tensor:
        """The norm by elementary operations."""
        return self._call(PLAIN, inputs)

    def arguments(self, x: Tensor, *given: Tensor) -> tuple:
        """All arguments of the functions and of the public operators, in their order, with the defaults left out."""
        rest = iter(given)
        residual = [next(rest) for _ in range(self.data - 1)]
        weight, bias = (next(rest) if there else None for there in self.affine)
        if self.adapts:
            return x, weight, bias, 1e-5
        if self.adds:
            return x, *residual, [3, 5], *([weight] if "rms" in self.norm else [weight, bias]), 1e-5
        if self.norm == "rms_norm":
            return x, [3, 5], weight, 1e-5
        if self.norm == "layer_norm":
            return x, [3, 5], weight, bias
        if self.norm == "group_norm":
            return x, 2, weight, bias
        if self.norm == "instance_norm":
            return x, None, None, weight, bias
        return x, *self.statistics(x), weight, bias, self.training

    def statistics(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Running statistics to evaluate with; none in training, where only the result differs from call to call."""
        if self.training:
            return None, None
        return torch.linspace(-1, 1, 3).to(x), torch.linspace(0.5, 1.5, 3).to(x)

    def _call(self, library, inputs: tuple[Tensor, ...]) -> Tensor:
        result = getattr(library, self.norm)(*self.arguments(*inputs), **self.options(*inputs))
        return result[0] + 0.5 * result[1] if self.adds else result


class PLAIN:
    """The norms by elementary operations."""

    add_layer_norm = staticmethod(add_layer_norm)
    add_rms_norm = staticmethod(add_rms_norm)
    adaptive_layer_norm = staticmethod(adaptive_layer_norm)
    adaptive_rms_norm = staticmethod(adaptive_rms_norm)
    layer_norm = staticmethod(layer_norm)
    rms_norm = staticmethod(rms_norm)
    batch_norm = staticmethod(batch_norm)
    group_norm = staticmethod(group_norm)
    instance_norm = staticmethod(instance_norm)


CASES = [Case("layer_norm", affine) for affine in AFFINE]
CASES += [Case("rms_norm", affine) for affine in AFFINE if not affine[1]]
CASES += [Case(f"{kind}_layer_norm", (True, True)) for kind in ("add", "adaptive")]
CASES += [Case(f"{kind}_rms_norm", (True, False)) for kind in ("add", "adaptive")]
CASES += [Case("batch_norm", affine, training) for affine in AFFINE for training in (True, False)]
CASES += [
    Case("batch_norm", (True, True), residual=True),
    Case("batch_norm", (True, True), activation="relu", residual=True),
    Case("batch_norm", (False, False), activation="silu"),
    Case("batch_norm", (False, True), False, activation=("leaky_relu", 0.2), residual=True),
    Case("group_norm", (True, True)),
    Case("group_norm", (False, False), activation="silu"),
    Case("group_norm", (True, True), activation=("leaky_relu", 0.2)),
    Case("instance_norm", (False, True)),
    Case("instance_norm", (True, True), activation="silu"),
]


class ResidualBlock(torch.nn.Module):
    """A norm and an activation with what skips them, as a ResNet's block ends."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Takes and returns the norm's input."""
        return self.norm(x.sin(), x)


class Block(torch.nn.Module):
    """A norm that adds a residual, in what a transformer has around it."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns the norm's input."""
        output, total = self.norm(x.sin(), x)
        return output + total


# Modules, each with the shape of an input for it.
MODULES = {
    "LayerNorm": lambda: (normext.LayerNorm((3, 5)), [4, 3, 5]),
    "LayerNorm without bias": lambda: (normext.LayerNorm((3, 5), bias=False), [4, 3, 5]),
    "LayerNorm plain": lambda: (normext.LayerNorm((3, 5), elementwise_affine=False), [4, 3, 5]),
    "RMSNorm": lambda: (normext.RMSNorm((3, 5)), [4, 3, 5]),
    "RMSNorm around zero": lambda: (normext.RMSNorm(5, 1e-6, weight_offset=1.0), [4, 3, 5]),
    "AddLayerNorm": lambda: (Block(normext.AddLayerNorm((3, 5))), [4, 3, 5]),
    "AddRMSNorm": lambda: (Block(normext.AddRMSNorm(5, 1e-6, weight_offset=1.0)), [4, 3, 5]),
    "GroupNorm": lambda: (normext.GroupNorm(2, 4), [3, 4, 5]),
    "GroupNorm with silu": lambda: (normext.GroupNorm(2, 4, activation="silu"), [3, 4, 5, 2]),
    "GroupNorm with leaky_relu": lambda: (normext.GroupNorm(2, 4, activation=("leaky_relu", 0.2)), [3, 4, 5, 2]),
    "InstanceNorm1d": lambda: (normext.InstanceNorm1d(3, affine=True), [4, 3, 5]),
    "InstanceNorm2d with statistics": lambda: (normext.InstanceNorm2d(3, track_running_stats=True), [4, 3, 5, 2]),
    "InstanceNorm with leaky_relu": lambda: (normext.InstanceNorm1d(3, activation=("leaky_relu", 0.2)), [4, 3, 5]),
    "BatchNorm1d": lambda: (normext.BatchNorm1d(3), [4, 3]),
    "BatchNorm2d": lambda: (normext.BatchNorm2d(3), [4, 3, 5, 2]),
    "BatchNorm3d": lambda: (normext.BatchNorm3d(3), [4, 3, 5, 2, 2]),
    "BatchNorm with relu": lambda: (normext.BatchNorm2d(3, activation="relu"), [4, 3, 5, 2]),
    "BatchNorm with residual": lambda: (
        ResidualBlock(normext.BatchNorm1d(3, momentum=None, activation="silu")),
        [4, 3, 5],
    ),
    "BatchNorm with leaky_relu and residual": lambda: (
        ResidualBlock(normext.BatchNorm2d(3, activation=("leaky_relu", 0.2))),
        [4, 3, 5, 2],
    ),
    "BatchNorm plain": lambda: (normext.BatchNorm1d(3, affine=False), [4, 3, 5]),
    "BatchNorm with the cumulative average": lambda: (normext.BatchNorm2d(3, momentum=None), [4, 3, 5, 2]),
    "BatchNorm without statistics": lambda: (normext.BatchNorm1d(3, track_running_stats=False), [4, 3, 5]),
}
if BATCH_NORM_TAKES_BIAS:
    MODULES["BatchNorm without bias"] = lambda: (normext.BatchNorm1d(3, bias=False), [4, 3, 5])
