"""What torch.fx's tracers see of the norms: the modules, as leaves like torch.nn's."""

import copy
from typing import Any

from torch.fx import Proxy, Tracer
from torch.nn import Module


def as_torch(module: Module) -> Module:
    """The module as one of the ``torch.nn`` class that its own derives from, with the same parameters and buffers."""
    twin = copy.copy(module)
    twin.__class__ = next(c for c in type(module).__mro__ if c.__module__.startswith("torch.nn."))
    return twin


def leaf(module: Module, *inputs: Any) -> Any:
    """The node for a call of the module, if the tracer that has sent ``inputs`` would take torch's norm for a leaf.

    Tracers tell leaves by the package that a class is from, and know ``torch.nn`` only. Classes derived from normext's
    are looked into, as those derived from torch's are.
    """
    proxy = next((given for given in inputs if isinstance(given, Proxy)), None)
    if proxy is None or type(module).__module__ != "normext.modules":
        return None
    tracer = proxy.tracer
    if not isinstance(tracer, Tracer) or tracer.root is module:
        return None
    path = tracer.path_of_module(module)
    if not tracer.is_leaf_module(as_torch(module), path):
        return None
    return tracer.create_proxy("call_module", path, inputs, {})
