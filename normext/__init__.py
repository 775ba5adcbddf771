"""normext: torch.nn's normalization layers, faster and more exact.

Functions (:func:`layer_norm`, :func:`rms_norm`, :func:`batch_norm`, :func:`group_norm`, :func:`instance_norm`) take the
arguments of their namesakes in ``torch.nn.functional``, modules (:class:`LayerNorm`, :class:`RMSNorm`,
:class:`BatchNorm1d`, ...) those of ``torch.nn``; operators are ``torch.ops.normext.*``. :func:`enable` has torch's own
norms computed by these kernels. Fused with what people write around a norm there are :func:`add_layer_norm` and
:func:`add_rms_norm`, with their modules, and :func:`adaptive_layer_norm` and :func:`adaptive_rms_norm`.
"""

from normext import (  # _load first: it loads the extension, or says why not
    _load,
    functional,
    integrations,
    modules,
    nested,
    quantization,
    running,
    scripting,
)
from normext._version import __version__
from normext.config import show_config
from normext.conversion import convert, register, revert
from normext.enabling import disable, enable, enabled
from normext.functional import *  # noqa: F403  all of its __all__
from normext.modules import *  # noqa: F403

__all__ = ["__version__", "convert", "disable", "enable", "enabled", "register", "revert", "show_config"]
__all__ += functional.__all__
__all__ += modules.__all__

del _load, integrations, nested, quantization, running, scripting
