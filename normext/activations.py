"""What may follow a channel norm: ``None``, ``"relu"``, ``"leaky_relu"``, ``("leaky_relu", slope)`` or ``"silu"``."""

import torch.nn.functional as F
from torch import Tensor

SLOPE = 0.01  # of leaky_relu, as in torch

Activation = str | tuple[str, float] | None


def parts(activation: Activation) -> tuple[str | None, float]:
    """Its name and its slope, which operators are given one by one. They know which names there are."""
    if not isinstance(activation, tuple):
        return activation, SLOPE
    if len(activation) != 2 or activation[0] != "leaky_relu" or not isinstance(activation[1], (float, int)):
        raise ValueError(
            "expected activation to be None, 'relu', 'leaky_relu', ('leaky_relu', slope) or 'silu', "
            f"but got {activation!r}"
        )
    return activation[0], float(activation[1])


def apply(z: Tensor, name: str | None, slope: float) -> Tensor:
    """The activation by torch's own operators."""
    match name:
        case None:
            return z
        case "relu":
            return F.relu(z)
        case "leaky_relu":
            return F.leaky_relu(z, slope)
        case "silu":
            return z * z.sigmoid()  # torch's silu has no forward derivative of its backward
    raise ValueError(f"unknown activation: {name}")


def gradient(grad_output: Tensor, z: Tensor, name: str | None, slope: float) -> Tensor:
    """``grad_output * activation'(z)``, in operations that have derivatives of every order."""
    match name:
        case None:
            return grad_output
        case "relu":
            return grad_output.masked_fill(z <= 0, 0.0)  # an infinite gradient, too
        case "leaky_relu":
            return grad_output.where(z > 0, grad_output * slope)
        case "silu":
            sigmoid = z.sigmoid()
            return grad_output * sigmoid * (1 + z * (1 - sigmoid))
    raise ValueError(f"unknown activation: {name}")
