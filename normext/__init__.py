"""normext: torch.nn's normalization layers, faster and more exact.

Functions (:func:`layer_norm`, :func:`rms_norm`, :func:`batch_norm`) take the arguments of their namesakes in
``torch.nn.functional``, modules (:class:`LayerNorm`, :class:`RMSNorm`, :class:`BatchNorm1d`, ...) those of
``torch.nn``; operators are ``torch.ops.normext.*``. :func:`enable` has torch's own norms computed by these kernels.
"""

from normext import _load, fusion, integrations, nested, running  # _load first: it loads the extension, or says why not
from normext._version import __version__
from normext.config import show_config
from normext.conversion import convert, register, revert
from normext.enabling import disable, enable, enabled
from normext.functional import batch_norm, layer_norm, rms_norm
from normext.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, LayerNorm, RMSNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "LayerNorm",
    "RMSNorm",
    "__version__",
    "batch_norm",
    "convert",
    "disable",
    "enable",
    "enabled",
    "layer_norm",
    "register",
    "revert",
    "rms_norm",
    "show_config",
]

del _load, fusion, integrations, nested, running
