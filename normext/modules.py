"""torch.nn's norm layers over normext's kernels: the same signatures, parameters, buffers, repr and state_dict.

Each class derives from its namesake in ``torch.nn`` and overrides the computation only; those that add a residual first
derive from the norm that they do it before.
"""

import inspect
import warnings
from typing import Any, cast

import torch
from torch import Tensor

from normext import functional as F
from normext import synchronized, tracing
from normext.activations import Activation

__all__ = [
    "AddLayerNorm",
    "AddRMSNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "RMSNorm",
    "SyncBatchNorm",
]


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


class AddLayerNorm(LayerNorm):
    """Adds a residual, and normalizes the sum: :func:`normext.add_layer_norm`.

    Its arguments, parameters and state_dict are :class:`LayerNorm`'s. In a transformer's block::

        y, x = self.norm(self.attention(y), x)  # in the place of x = x + self.attention(y); y = self.norm(x)
    """

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Takes two of ``[*, *normalized_shape]``, and returns ``(output, sum)``, of the same shape."""
        if not isinstance(x, Tensor) or not isinstance(residual, Tensor):
            leaf = tracing.leaf(self, x, residual)
            if leaf is not None:
                return leaf
        return F.add_layer_norm(
            x, residual, self.normalized_shape, self.weight, self.bias, self.eps, weight_offset=self.weight_offset
        )


class AddRMSNorm(RMSNorm):
    """Adds a residual, and normalizes the sum: :func:`normext.add_rms_norm`.

    Its arguments, parameters and state_dict are :class:`RMSNorm`'s. It is used as :class:`AddLayerNorm` is.
    """

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Takes two of ``[*, *normalized_shape]``, and returns ``(output, sum)``, of the same shape."""
        if not isinstance(x, Tensor) or not isinstance(residual, Tensor):
            leaf = tracing.leaf(self, x, residual)
            if leaf is not None:
                return leaf
        return F.add_rms_norm(
            x, residual, self.normalized_shape, self.weight, self.eps, weight_offset=self.weight_offset
        )


class _Activated(torch.nn.Module):
    """What norms with an activation share: it is none of torch's arguments, and the last part of their repr."""

    activation = cast(Activation, None)  # without an annotation, which TorchScript would take for its type

    def __init_subclass__(cls) -> None:
        """Its signature is torch's and one argument more."""
        theirs = inspect.signature(next(base for base in cls.__mro__ if base.__module__.startswith("torch.nn.")))
        own = inspect.Parameter("activation", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Activation)
        cls.__signature__ = theirs.replace(parameters=[*theirs.parameters.values(), own])  # type: ignore[attr-defined]

    def __init__(self, *args: Any, activation: Activation = None, **kwargs: Any) -> None:
        self.activation = activation
        super().__init__(*args, **kwargs)

    def extra_repr(self) -> str:
        """As torch's, and the activation where there is one."""
        activation = "" if self.activation is None else f", activation={self.activation!r}"
        return super().extra_repr() + activation


class _BatchNorm(_Activated, torch.nn.modules.batchnorm._BatchNorm):
    """What the three BatchNorm classes share: which statistics to use, and how much the batch weighs in them."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Takes and returns ``[N, C, *]``; a residual, of the same shape, is added before the activation."""
        if not isinstance(input, Tensor) or not (residual is None or isinstance(residual, Tensor)):
            leaf = tracing.leaf(self, *((input,) if residual is None else (input, residual)))
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
                return self._forward_cumulative(input, residual)
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
            residual=residual,
            activation=self.activation,
        )

    def _forward_cumulative(self, input: Tensor, residual: Tensor | None) -> Tensor:
        """Training with the cumulative average: batch k weighs 1 / k, and k stays a tensor, which compilers ask for."""
        running_mean, running_var, count = self.running_mean, self.running_var, self.num_batches_tracked
        assert running_mean is not None and running_var is not None and count is not None
        mean, var = running_mean.clone(), running_var.clone()
        output = F.batch_norm(
            input,
            mean,
            var,
            self.weight,
            self.bias,
            training=True,
            momentum=1.0,
            eps=self.eps,
            residual=residual,
            activation=self.activation,
        )
        weight = count.to(mean.dtype).reciprocal()
        running_mean.lerp_(mean, weight)
        running_var.lerp_(var, weight)
        return output


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d`, computed by :func:`normext.batch_norm`: ``[N, C]`` or ``[N, C, L]``.

    As :class:`BatchNorm2d` it takes an activation, and a residual beside its input.
    """


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """:class:`torch.nn.BatchNorm2d`, computed by :func:`normext.batch_norm`: ``[N, C, H, W]``.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as torch's.
        activation: what follows the norm, computed with it: None, "relu", "leaky_relu", ("leaky_relu", slope), "silu".

    Called with a second tensor, it adds that before the activation, as at the end of a ResNet's block::

        self.bn2 = normext.BatchNorm2d(64, activation="relu")  # in the place of a norm, and of a ReLU after the sum
        x = self.bn2(self.conv2(y), x)  # in the place of x = self.relu(self.bn2(self.conv2(y)) + x)
    """


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d`, computed by :func:`normext.batch_norm`: ``[N, C, D, H, W]``.

    As :class:`BatchNorm2d` it takes an activation, and a residual beside its input.
    """


class SyncBatchNorm(_BatchNorm, torch.nn.SyncBatchNorm):
    """:class:`torch.nn.SyncBatchNorm`, on the CPU too: BatchNorm whose batch is that of all processes of a group.

    In training, where ``torch.distributed`` has been set up, each process has a part of the batch, ``[N, C, *]``, with
    an N of its own, which may be 0; the statistics are those of the whole, the same bits in every process, and so are
    the running ones. Gradients of weight and bias are sums over the process's own part, which DDP and FSDP add up. In
    evaluation, and without other processes, it is BatchNorm.

    Everything that must be the same in all processes is the caller's: they call as many norms, forward and backward,
    in one order. A batch of one value in all leaves the running statistics as they are, where BatchNorm refuses it.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as torch's.
        process_group: whose parts make one batch; by default all processes'.
        activation: as :class:`BatchNorm2d`'s; a residual, too, is taken as there.
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Takes and returns ``[N, C, *]``; a residual, of the same shape, is added before the activation."""
        group = synchronized.group_of(self.process_group) if self.training else None
        if group is None or not isinstance(input, Tensor):
            return super().forward(input, residual)
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        momentum: float | Tensor = self.momentum or 0.0
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = self.num_batches_tracked.double().reciprocal()
        return synchronized.sync_batch_norm(
            input,
            self.running_mean if self.track_running_stats else None,
            self.running_var if self.track_running_stats else None,
            self.weight,
            self.bias,
            momentum,
            self.eps,
            group,
            residual=residual,
            activation=self.activation,
        )

    @classmethod
    def convert_sync_batchnorm(cls, module: torch.nn.Module, process_group: Any = None) -> torch.nn.Module:
        """A model with this class in the place of every BatchNorm, torch's or normext's, with their very tensors.

        As torch's, it returns another module where ``module`` is a BatchNorm itself, and else the same one, changed.
        """
        norm = module
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            arguments = (module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
            activation = getattr(module, "activation", None)
            norm = cls(*arguments, process_group, device="meta", activation=activation)
            for tensors in ("_parameters", "_buffers"):
                getattr(norm, tensors).update(getattr(module, tensors))
            norm.training = module.training
        for name, child in module.named_children():
            norm.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return norm


class _LazyBatchNorm(_BatchNorm):
    """What takes the number of channels from the first input, whatever else comes with that."""

    def initialize_parameters(self, input: Tensor, residual: Tensor | None = None) -> None:
        """Called by torch with the arguments of the first call."""
        super().initialize_parameters(input)  # type: ignore[misc]


class LazyBatchNorm1d(_LazyBatchNorm, torch.nn.LazyBatchNorm1d):
    """:class:`BatchNorm1d` that takes the number of channels from its first input."""

    cls_to_become = BatchNorm1d  # type: ignore[assignment]


class LazyBatchNorm2d(_LazyBatchNorm, torch.nn.LazyBatchNorm2d):
    """:class:`BatchNorm2d` that takes the number of channels from its first input."""

    cls_to_become = BatchNorm2d  # type: ignore[assignment]


class LazyBatchNorm3d(_LazyBatchNorm, torch.nn.LazyBatchNorm3d):
    """:class:`BatchNorm3d` that takes the number of channels from its first input."""

    cls_to_become = BatchNorm3d  # type: ignore[assignment]


class GroupNorm(_Activated, torch.nn.GroupNorm):
    """:class:`torch.nn.GroupNorm`, computed by :func:`normext.group_norm`: ``[N, C, *]``.

    Args:
        num_groups, num_channels, eps, affine, device, dtype: as torch's.
        activation: what follows the norm, computed with it: None, "relu", "leaky_relu", ("leaky_relu", slope), "silu".

    Example:
        >>> normext.GroupNorm(2, 4, activation="relu")(torch.tensor([[1.0, 3.0, 5.0, 5.0]])).tolist()
        [[0.0, 0.9999949932098389, 0.0, 0.0]]
    """

    def forward(self, input: Tensor) -> Tensor:
        """Takes and returns ``[N, C, *]``."""
        if not isinstance(input, Tensor):
            leaf = tracing.leaf(self, input)
            if leaf is not None:
                return leaf
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps, activation=self.activation)


class _InstanceNorm(_Activated, torch.nn.modules.instancenorm._InstanceNorm):
    """What the InstanceNorm classes share."""

    def forward(self, input: Tensor) -> Tensor:
        """Takes and returns ``[N, C, *]``, or ``[C, *]`` for one sample."""
        if not isinstance(input, Tensor):
            leaf = tracing.leaf(self, input)
            if leaf is not None:
                return leaf
        self._check_input_dim(input)
        without_batch = self._get_no_batch_dim()
        dim = input.dim() - without_batch
        if input.size(dim) != self.num_features:
            if self.affine:
                raise ValueError(
                    f"expected input's size at dim={dim} to match num_features"
                    f" ({self.num_features}), but got: {input.size(dim)}."
                )
            warnings.warn(
                f"input's size at dim={dim} does not match num_features. You can silence this warning by not passing "
                "in num_features, which is not used because affine=False",
                stacklevel=2,
            )
        if dim == 0:
            return self._apply_instance_norm(input.unsqueeze(0)).squeeze(0)
        return self._apply_instance_norm(input)

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        momentum = 0.0
        if self.momentum is not None:
            momentum = self.momentum
        return F.instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            momentum,
            self.eps,
            activation=self.activation,
        )


class InstanceNorm1d(_InstanceNorm, torch.nn.InstanceNorm1d):
    """:class:`torch.nn.InstanceNorm1d`, computed by :func:`normext.instance_norm`: ``[N, C, L]`` or ``[C, L]``."""


class InstanceNorm2d(_InstanceNorm, torch.nn.InstanceNorm2d):
    """:class:`torch.nn.InstanceNorm2d`, computed by :func:`normext.instance_norm`.

    Takes ``[N, C, H, W]`` or ``[C, H, W]``.
    """


class InstanceNorm3d(_InstanceNorm, torch.nn.InstanceNorm3d):
    """:class:`torch.nn.InstanceNorm3d`, computed by :func:`normext.instance_norm`.

    Takes ``[N, C, D, H, W]`` or ``[C, D, H, W]``.
    """


class LazyInstanceNorm1d(_InstanceNorm, torch.nn.LazyInstanceNorm1d):
    """:class:`InstanceNorm1d` that takes the number of channels from its first input."""

    cls_to_become = InstanceNorm1d  # type: ignore[assignment]


class LazyInstanceNorm2d(_InstanceNorm, torch.nn.LazyInstanceNorm2d):
    """:class:`InstanceNorm2d` that takes the number of channels from its first input."""

    cls_to_become = InstanceNorm2d  # type: ignore[assignment]


class LazyInstanceNorm3d(_InstanceNorm, torch.nn.LazyInstanceNorm3d):
    """:class:`InstanceNorm3d` that takes the number of channels from its first input."""

    cls_to_become = InstanceNorm3d  # type: ignore[assignment]
