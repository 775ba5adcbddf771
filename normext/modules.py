"""torch.nn's norm layers over normext's kernels: the same signatures, parameters, buffers, repr and state_dict.

Each class derives from its namesake in ``torch.nn`` and overrides the computation only.
"""

from typing import Any

import torch
from torch import Tensor

from normext import functional as F
from normext import tracing

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LayerNorm", "RMSNorm"]


class _RowNorm(torch.nn.Module):
    """What LayerNorm and RMSNorm share: an offset that is added to the weight, which starts where both make one."""

    weight_offset: float = 0.0

    def reset_parameters(self) -> None:
        """Such that the norm scales by one and shifts by zero."""
        super().reset_parameters()  # type: ignore[misc]
        if self.weight_offset and self.weight is not None:
            torch.nn.init.constant_(self.weight, 1 - self.weight_offset)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """As torch's, and the offset where there is one."""
        offset = f", weight_offset={self.weight_offset}" if self.weight_offset else ""
        return super().extra_repr() + offset


class LayerNorm(_RowNorm, torch.nn.LayerNorm):
    """:class:`torch.nn.LayerNorm`, computed by :func:`normext.layer_norm`.

    Args:
        normalized_shape, eps, elementwise_affine, bias, device, dtype: as torch's.
        weight_offset: added to the weight in the dtype that is computed in: 1 for weights that start at zero.
    """

    __constants__ = (*torch.nn.LayerNorm.__constants__, "weight_offset")  # type: ignore[assignment]  # for scripts

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        weight_offset: float = 0.0,
    ) -> None:
        self.weight_offset = weight_offset
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Takes and returns ``[*, *normalized_shape]``."""
        if not isinstance(input, Tensor):
            leaf = tracing.leaf(self, input)
            if leaf is not None:
                return leaf
        return F.layer_norm(
            input, self.normalized_shape, self.weight, self.bias, self.eps, weight_offset=self.weight_offset
        )


class RMSNorm(_RowNorm, torch.nn.RMSNorm):
    """:class:`torch.nn.RMSNorm`, computed by :func:`normext.rms_norm`.

    Args:
        normalized_shape, eps, elementwise_affine, device, dtype: as torch's.
        weight_offset: added to the weight in the dtype that is computed in: 1 for weights that start at zero, as
            Gemma's.
    """

    __constants__ = (*torch.nn.RMSNorm.__constants__, "weight_offset")  # type: ignore[assignment]  # for scripts

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        weight_offset: float = 0.0,
    ) -> None:
        self.weight_offset = weight_offset
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns ``[*, *normalized_shape]``."""
        if not isinstance(x, Tensor):
            leaf = tracing.leaf(self, x)
            if leaf is not None:
                return leaf
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps, weight_offset=self.weight_offset)


class _BatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    """What the three BatchNorm classes share: which statistics to use, and how much the batch weighs in them."""

    def forward(self, input: Tensor) -> Tensor:
        """Takes and returns ``[N, C, *]``."""
        if not isinstance(input, Tensor):
            leaf = tracing.leaf(self, input)
            if leaf is not None:
                return leaf
        self._check_input_dim(input)
        tracking = self.training and self.track_running_stats
        momentum = 0.0
        if self.momentum is not None:
            momentum = self.momentum
        if tracking and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return self._forward_cumulative(input)
        use_buffers = tracking or not self.training
        return F.batch_norm(
            input,
            self.running_mean if use_buffers else None,
            self.running_var if use_buffers else None,
            self.weight,
            self.bias,
            training=self.training or (self.running_mean is None and self.running_var is None),
            momentum=momentum,
            eps=self.eps,
        )

    def _forward_cumulative(self, input: Tensor) -> Tensor:
        """Training with the cumulative average: batch k weighs 1 / k, and k stays a tensor, which compilers ask for."""
        running_mean, running_var, count = self.running_mean, self.running_var, self.num_batches_tracked
        assert running_mean is not None and running_var is not None and count is not None
        mean, var = running_mean.clone(), running_var.clone()
        output = F.batch_norm(input, mean, var, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
        weight = count.to(mean.dtype).reciprocal()
        running_mean.lerp_(mean, weight)
        running_var.lerp_(var, weight)
        return output


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d`, computed by :func:`normext.batch_norm`: ``[N, C]`` or ``[N, C, L]``."""


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d`, computed by :func:`normext.batch_norm`: ``[N, C, H, W]``."""


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d`, computed by :func:`normext.batch_norm`: ``[N, C, D, H, W]``."""
