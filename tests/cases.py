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


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
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
    return output if bias is None else output + per_channel(bias)


def activate(z: Tensor, activation: str | tuple[str, float] | None) -> Tensor:
    """What follows a channel norm, by torch's own."""
    if activation is None:
        return z
    if activation == "silu":
        return z * z.sigmoid()
    name, *slope = activation if isinstance(activation, tuple) else (activation,)
    return getattr(F, name)(z, *slope)


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
    """A norm as a function of its differentiable inputs: x, then weight and bias where there are any."""

    norm: str
    affine: tuple[bool, bool]
    training: bool = True
    activation: str | tuple[str, float] | None = None

    def __str__(self) -> str:
        mode = ["training" if self.training else "evaluation"] if self.norm == "batch_norm" else []
        after = [] if self.activation is None else [str(self.activation)]
        return "-".join([self.norm, *mode, affine_name(self.affine), *after])

    @property
    def operator(self) -> str:
        """The norm whose operators it is: InstanceNorm is GroupNorm."""
        return "group_norm" if self.norm == "instance_norm" else self.norm

    @property
    def options(self) -> dict[str, Any]:
        """Arguments by keyword."""
        return {} if self.activation is None else {"activation": self.activation}

    def inputs(self, device: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        """Fresh leaves that require gradients: x is [4, 3, 5], for GroupNorm [3, 4, 5]; parameters are of its channels
        or of all sizes but the first.
        """
        x = values(*((3, 4) if self.norm == "group_norm" else (4, 3)), 5, dtype=dtype, device=device)
        shape = x.shape[1:] if self.norm in ("layer_norm", "rms_norm") else x.shape[1:2]
        tensors = (x, *parameters(self.affine, *shape, dtype=dtype, device=device))
        return tuple(t.requires_grad_() for t in tensors if t is not None)

    def ours(self, *inputs: Tensor) -> Tensor:
        """The norm by normext."""
        return self._call(normext, inputs)

    def plain(self, *inputs: Tensor) -> Tensor:
        """The norm by elementary operations."""
        return self._call(PLAIN, inputs)

    def arguments(self, x: Tensor, *given: Tensor) -> tuple:
        """All arguments of the functions and of the public operators, in their order, with the defaults left out."""
        rest = iter(given)
        weight, bias = (next(rest) if there else None for there in self.affine)
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
        return getattr(library, self.norm)(*self.arguments(*inputs), **self.options)


class PLAIN:
    """The norms by elementary operations."""

    layer_norm = staticmethod(layer_norm)
    rms_norm = staticmethod(rms_norm)
    batch_norm = staticmethod(batch_norm)
    group_norm = staticmethod(group_norm)
    instance_norm = staticmethod(instance_norm)


CASES = [Case("layer_norm", affine) for affine in AFFINE]
CASES += [Case("rms_norm", affine) for affine in AFFINE if not affine[1]]
CASES += [Case("batch_norm", affine, training) for affine in AFFINE for training in (True, False)]
CASES += [
    Case("group_norm", (True, True)),
    Case("group_norm", (False, False), activation="silu"),
    Case("group_norm", (True, True), activation=("leaky_relu", 0.2)),
    Case("instance_norm", (False, True)),
    Case("instance_norm", (True, True), activation="silu"),
]

# Modules, each with the shape of an input for it.
MODULES = {
    "LayerNorm": lambda: (normext.LayerNorm((3, 5)), [4, 3, 5]),
    "LayerNorm without bias": lambda: (normext.LayerNorm((3, 5), bias=False), [4, 3, 5]),
    "LayerNorm plain": lambda: (normext.LayerNorm((3, 5), elementwise_affine=False), [4, 3, 5]),
    "RMSNorm": lambda: (normext.RMSNorm((3, 5)), [4, 3, 5]),
    "RMSNorm around zero": lambda: (normext.RMSNorm(5, 1e-6, weight_offset=1.0), [4, 3, 5]),
    "GroupNorm": lambda: (normext.GroupNorm(2, 4), [3, 4, 5]),
    "GroupNorm with silu": lambda: (normext.GroupNorm(2, 4, activation="silu"), [3, 4, 5, 2]),
    "InstanceNorm1d": lambda: (normext.InstanceNorm1d(3, affine=True), [4, 3, 5]),
    "InstanceNorm2d with statistics": lambda: (normext.InstanceNorm2d(3, track_running_stats=True), [4, 3, 5, 2]),
    "BatchNorm1d": lambda: (normext.BatchNorm1d(3), [4, 3]),
    "BatchNorm2d": lambda: (normext.BatchNorm2d(3), [4, 3, 5, 2]),
    "BatchNorm3d": lambda: (normext.BatchNorm3d(3), [4, 3, 5, 2, 2]),
    "BatchNorm plain": lambda: (normext.BatchNorm1d(3, affine=False), [4, 3, 5]),
    "BatchNorm with the cumulative average": lambda: (normext.BatchNorm2d(3, momentum=None), [4, 3, 5, 2]),
    "BatchNorm without statistics": lambda: (normext.BatchNorm1d(3, track_running_stats=False), [4, 3, 5]),
}
if BATCH_NORM_TAKES_BIAS:
    MODULES["BatchNorm without bias"] = lambda: (normext.BatchNorm1d(3, bias=False), [4, 3, 5])
