"""torch.nn's norm layers over normext's kernels: the same signatures, parameters, buffers, repr and state_dict.

Each class derives from its namesake in ``torch.nn`` and overrides the computation only.
"""

import torch
from torch import Tensor

from normext import functional as F

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LayerNorm"]


class LayerNorm(torch.nn.LayerNorm):
    """:class:`torch.nn.LayerNorm`, computed by :func:`normext.layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        """Takes and returns ``[*, *normalized_shape]``."""
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class _BatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    """What the three BatchNorm classes share: which statistics to use, and how much the batch weighs in them."""

    def forward(self, input: Tensor) -> Tensor:
        """Takes and returns ``[N, C, *]``."""
        self._check_input_dim(input)
        tracking = self.training and self.track_running_stats
        momentum = 0.0 if self.momentum is None else self.momentum
        if tracking and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the cumulative average: batch k weighs 1 / k
                momentum = 1.0 / float(self.num_batches_tracked)
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


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d`, computed by :func:`normext.batch_norm`: ``[N, C]`` or ``[N, C, L]``."""


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d`, computed by :func:`normext.batch_norm`: ``[N, C, H, W]``."""


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d`, computed by :func:`normext.batch_norm`: ``[N, C, D, H, W]``."""
