"""Fusion by ``torch.ao.quantization.fuse_modules``, which looks a method up by the exact classes of the modules."""

from collections.abc import Callable

import torch
from torch.nn import Module

from normext import modules
from normext.tracing import as_torch

try:
    from torch.ao.quantization.fuser_method_mappings import _DEFAULT_OP_LIST_TO_FUSER_METHOD as _methods
except ImportError:  # torch says that quantization is to leave it
    _methods = {}

_ours = {getattr(torch.nn, name): getattr(modules, name) for name in modules.__all__ if hasattr(torch.nn, name)}


def _handing_over(method: Callable[..., Module]) -> Callable[..., Module]:
    """The method, handed torch's classes in the place of normext's."""

    def fuse(is_qat: bool, *given: Module) -> Module:
        for module in given:
            if getattr(module, "activation", None) is not None and type(module) in _ours.values():
                raise NotImplementedError(f"fuse_modules: expected norms without an activation, but got {module}")
        return method(is_qat, *(as_torch(m) if type(m) in _ours.values() else m for m in given))

    return fuse


for _classes, _method in list(_methods.items()):
    if not _ours.keys().isdisjoint(_classes):
        _methods[tuple(_ours.get(c, c) for c in _classes)] = _handing_over(_method)
