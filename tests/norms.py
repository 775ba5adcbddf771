"""The norms of the family as the tests call them: what differs from one to the next, in one table."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import reference
import torch
from inputs import AFFINE, parameters
from torch import Tensor

import normext

ops = torch.ops.normext
EPS = 1e-5


@dataclass(frozen=True)
class RowNorm:
    """A norm over the last dimensions. Where it has no mean or no bias, None stands in their places."""

    name: str
    centered: bool  # whether it has a mean, and a bias

    @property
    def affine(self) -> list[tuple[bool, bool]]:
        """The parameters it may have: (weight?, bias?)."""
        return [there for there in AFFINE if self.centered or not there[1]]

    def parameters(
        self,
        *shape: int,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        affine: tuple[bool, bool] = (True, True),
    ) -> tuple[Tensor | None, Tensor | None]:
        """A weight and a bias, as far as asked for and known to this norm."""
        return parameters((affine[0], affine[1] and self.centered), *shape, dtype=dtype, device=device)

    def __call__(
        self,
        x: Tensor,
        shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = EPS,
        weight_offset: float = 0.0,
    ) -> Tensor:
        """The function."""
        given = (weight, bias) if self.centered else (weight,)
        return getattr(normext, self.name)(x, shape, *given, eps, weight_offset=weight_offset)

    def forward(
        self,
        x: Tensor,
        shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = EPS,
        weight_offset: float = 0.0,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The operator: output, mean and rstd."""
        if self.centered:
            return ops.layer_norm_forward(x, shape, weight, bias, eps, weight_offset)
        output, rstd = ops.rms_norm_forward(x, shape, weight, eps, weight_offset)
        return output, None, rstd

    def backward(
        self,
        grad_output: Tensor,
        x: Tensor,
        shape: Sequence[int],
        statistics: tuple[Tensor | None, Tensor],
        weight: Tensor | None = None,
        mask: Sequence[bool] = (True, True, True),
        eps: float = EPS,
        weight_offset: float = 0.0,
    ) -> tuple[Tensor | None, ...]:
        """The operator: gradients of input, weight and bias, as far as asked for."""
        mean, rstd = statistics
        if self.centered:
            return ops.layer_norm_backward(grad_output, x, shape, mean, rstd, weight, eps, mask, weight_offset)
        return *ops.rms_norm_backward(grad_output, x, shape, rstd, weight, eps, mask[:2], weight_offset), None

    def expected(
        self,
        x: Tensor,
        shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = EPS,
        grad_output: Tensor | None = None,
        weight_offset: float = 0.0,
    ) -> reference.Norm:
        """All of it in wide arithmetic."""
        return reference.row_norm(x, shape, weight, bias, eps, grad_output, weight_offset, centered=self.centered)


LAYER_NORM = RowNorm("layer_norm", centered=True)
RMS_NORM = RowNorm("rms_norm", centered=False)
ROW_NORMS = [LAYER_NORM, RMS_NORM]

row_norms = pytest.mark.parametrize("norm", ROW_NORMS, ids=lambda norm: norm.name)
affine_row_norms = pytest.mark.parametrize(
    ("norm", "affine"), [(norm, affine) for norm in ROW_NORMS for affine in norm.affine], ids=str
)
