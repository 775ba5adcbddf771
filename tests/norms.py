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


@dataclass(frozen=True)
class AddNorm(RowNorm):
    """A norm of input + residual, called with a residual of zeros, which leaves the input what it is."""

    def __call__(self, x, shape, weight=None, bias=None, eps=EPS, weight_offset=0.0) -> Tensor:
        """The function's output."""
        given = (weight, bias) if self.centered else (weight,)
        function = getattr(normext, self.name)
        return function(x, torch.zeros_like(x), shape, *given, eps, weight_offset=weight_offset)[0]

    def forward(self, x, shape, weight=None, bias=None, eps=EPS, weight_offset=0.0) -> tuple[Tensor | None, ...]:
        """The operator: output, mean and rstd."""
        arguments = (x, torch.zeros_like(x), shape, weight, bias, eps, weight_offset, self.centered)
        output, _, mean, rstd = ops.add_norm_forward(*arguments)
        return output, mean, rstd

    def backward(
        self, grad_output, x, shape, statistics, weight=None, mask=(True, True, True), eps=EPS, weight_offset=0.0
    ) -> tuple[Tensor | None, ...]:
        """The operator: gradients of input, weight and bias, as far as asked for."""
        asked = [mask[0], False, mask[1], mask[2] and self.centered]
        arguments = (grad_output, None, x, shape, *statistics, weight, eps, asked, weight_offset, self.centered)
        grad_input, _, grad_weight, grad_bias = ops.add_norm_backward(*arguments)
        return grad_input, grad_weight, grad_bias


@dataclass(frozen=True)
class AdaptiveNorm(RowNorm):
    """A norm with a scale and a shift; the weight and the bias that it is given are those, of one dimension."""

    def __call__(self, x, shape, weight=None, bias=None, eps=EPS, weight_offset=0.0) -> Tensor:
        """The function."""
        return getattr(normext, self.name)(x, *self._lines(x, weight, bias), eps)

    def forward(self, x, shape, weight=None, bias=None, eps=EPS, weight_offset=0.0) -> tuple[Tensor | None, ...]:
        """The operator: output, mean and rstd."""
        lines = (None if t is None else t.view(*[1] * (x.dim() - 1), -1) for t in self._lines(x, weight, bias))
        return ops.adaptive_norm_forward(x, *lines, eps, self.centered)

    def backward(
        self, grad_output, x, shape, statistics, weight=None, mask=(True, True, True), eps=EPS, weight_offset=0.0
    ) -> tuple[Tensor | None, ...]:
        """The operator: gradients of input, scale and shift, as far as asked for."""
        scale = self._lines(x, weight, None)[0].view(*[1] * (x.dim() - 1), -1)
        return ops.adaptive_norm_backward(grad_output, x, *statistics, scale, eps, mask, self.centered)

    def expected(
        self, x, shape, weight=None, bias=None, eps=EPS, grad_output=None, weight_offset=0.0
    ) -> reference.Norm:
        """All of it in wide arithmetic."""
        offset = 0.0 if weight is None else 1.0
        return reference.row_norm(x, shape, weight, bias, eps, grad_output, offset, centered=self.centered)

    def _lines(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scale = x.new_zeros(x.shape[-1]) if weight is None else weight
        return scale, torch.zeros_like(scale) if bias is None and self.centered else bias


LAYER_NORM = RowNorm("layer_norm", centered=True)
RMS_NORM = RowNorm("rms_norm", centered=False)
ROW_NORMS = [LAYER_NORM, RMS_NORM]
ADD_NORMS = [AddNorm("add_layer_norm", centered=True), AddNorm("add_rms_norm", centered=False)]
ADAPTIVE_NORMS = [AdaptiveNorm("adaptive_layer_norm", centered=True), AdaptiveNorm("adaptive_rms_norm", centered=False)]


def norms(among: list[RowNorm]) -> pytest.MarkDecorator:
    """A test of each of them."""
    return pytest.mark.parametrize("norm", among, ids=lambda norm: norm.name)


row_norms = norms(ROW_NORMS)
every_row_norm = norms([*ROW_NORMS, *ADD_NORMS, *ADAPTIVE_NORMS])  # of promises that hold whatever is fused with it
affine_row_norms = pytest.mark.parametrize(
    ("norm", "affine"), [(norm, affine) for norm in ROW_NORMS for affine in norm.affine], ids=str
)
