"""normext: torch.nn's normalization layers, faster and more exact.

Functions (:func:`layer_norm`, :func:`rms_norm`, :func:`batch_norm`, :func:`group_norm`, :func:`instance_norm`) take the
arguments of their namesakes in ``torch.nn.functional``, modules (:class:`LayerNorm`, :class:`RMSNorm`,
:class:`BatchNorm1d`, ...) those of ``torch.nn``; operators are ``torch.ops.normext.*``. :func:`enable` has torch's own
norms computed by these kernels. Fused with what people write around a norm there are :func:`add_layer_norm` and
:func:`add_rms_norm`, with their modules, and :func:`adaptive_layer_norm` and :func:`adaptive_rms_norm`.
"""

from normext import _load, fusion, integrations, nested, running  # _load first: it loads the extension, or says why not
from normext._version import __version__
from normext.config import show_config
from normext.conversion import convert, register, revert
from normext.enabling import disable, enable, enabled
from normext.functional import (
    adaptive_layer_norm,
    adaptive_rms_norm,
    add_layer_norm,
    add_rms_norm,
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from normext.modules import (
    AddLayerNorm,
    AddRMSNorm,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
    RMSNorm,
)

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
    "__version__",
    "adaptive_layer_norm",
    "adaptive_rms_norm",
    "add_layer_norm",
    "add_rms_norm",
    "batch_norm",
    "convert",
    "disable",
    "enable",
    "enabled",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "register",
    "revert",
    "rms_norm",
    "show_config",
]

del _load, fusion, integrations, nested, running
