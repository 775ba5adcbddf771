"""A model's norms computed by normext's kernels, the undo, and what one's own norms need for it."""

import inspect
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.jit import ScriptModule
from torch.nn import Module
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from normext import _C
from normext.conversion.classes import DTYPES, NAMESAKES, exchanged, is_ours, joined, mark, namesake, own_class, unmark
from normext.conversion.fusing import Change, fused
from normext.conversion.probe import recognize

TORCHS = (torch.nn.LayerNorm, torch.nn.RMSNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._NormBase)
DEVICES = ("cpu", "meta", *(["cuda"] if _C.build_info["cuda_architectures"] else []))
BLANK = Module()
LIBRARIES = ("timm", "transformers", "torchvision", "diffusers")  # that write torch's norms out again
COMPUTING = ("forward", "__call__", "_apply_instance_norm", "_handle_no_batch_input")  # what decides a norm's values
Converter = Callable[[Any], type[Module] | str]
_converters: dict[type[Module], Converter] = {}


class Left(NamedTuple):
    """A norm that stays as it is: its class, and why."""

    cls: type[Module]
    why: str


@dataclass(frozen=True)
class Report:
    """What became of a model's norms, by the modules' names; printed, it is a table by class.

    Attributes:
        converted: the class that each converted module had.
        left: class and reason of each norm that was left as it is.
        fused: the activation that a converted norm computes too, if asked to fuse.
    """

    converted: dict[str, type[Module]] = field(default_factory=dict)
    left: dict[str, Left] = field(default_factory=dict)
    fused: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        also = {name: f", with {activation!r}" for name, activation in self.fused.items()}
        rows = [(_full_name(cls), f"converted{also.get(name, '')}") for name, cls in self.converted.items()]
        rows += [(_full_name(cls), f"left: {why}") for cls, why in self.left.values()]
        if not rows:
            return "no norms"
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{rows.count(row):>6}  {row[0]:<{width}}  {row[1]}" for row in dict.fromkeys(rows))


def convert(model: Module, *, fuse: bool = False) -> Report:
    """Has the norms of a model computed by normext, in place: the modules get other classes, and stay what they are.

    Parameters, buffers, hooks, names, state_dict, shared modules, training flags and references held elsewhere (by an
    optimizer, by DDP or FSDP around it or to come) are the very same objects. No tensor of the model is read or moved:
    one on ``meta`` is converted as well. :func:`revert` undoes it; a second call finds nothing to do.

    Converted are

    - the norms of ``torch.nn`` that normext has, and classes derived from them that do not compute anything else;
    - norms of timm, transformers, torchvision and diffusers, and RMSNorms and LayerNorms that anybody has written as a
      module with a weight and an epsilon. They are recognized by what they compute, not by name: a twin of the
      module is given small inputs on the CPU, and the converted class must give the same values, gradients and dtypes
      (``normext/conversion/probe.py``). Such a module remains of its class for ``isinstance``, reads its own epsilon,
      and rounds once in half types, where many norms round in between;
    - classes that were :func:`register`\\ ed.

    Left as they are, and named in the report with the reason: classes that override the ``forward`` of ``torch.nn``'s
    norms, other than those of the libraries above; modules whose ``forward`` was replaced on the object; scripted
    modules; norms that normext does not have, on devices or with dtypes it has no kernels for.

    A program that was compiled before is compiled again at its next call. ``torch.jit.script`` takes converted modules
    of ``torch.nn`` but not those of other libraries.

    Args:
        model: a module, itself a norm or with norms anywhere in it.
        fuse: whether a BatchNorm, GroupNorm or InstanceNorm is to compute the ReLU, LeakyReLU or SiLU after it as well,
            where one follows the other in an ``nn.Sequential``, or in one of timm's norms that hold an activation. Its
            module stays, and hands on what it is given. Left out are modules with hooks, and those that are in several
            places. Not for a program that calls the parts of its ``Sequential`` by themselves.

    Returns:
        What was converted and what was not, by name; print it.

    Raises:
        TypeError: if model is not a module.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.LocalResponseNorm(2))
        >>> print(normext.convert(model))
             1  torch.nn.modules.normalization.LayerNorm          converted
             1  torch.nn.modules.normalization.LocalResponseNorm  left: normext has no such norm
        >>> type(model[1]) is normext.LayerNorm
        True
        >>> model = normext.revert(model)
    """
    _check("convert", model)
    report = Report()
    found: dict[Any, type[Module] | str] = {}
    changes: dict[Module, Change] = {}
    for name, module in model.named_modules():
        if is_ours(type(module)) or not _is_norm(module):
            continue
        key = _likeness(module)
        if key not in found:
            found[key] = _new_class(module)
        result = found[key]
        if isinstance(result, str):
            report.left[name] = Left(type(module), result)
        else:
            report.converted[name] = type(module)
            changes[module] = result, {}
    if fuse:
        changes = fused(model, changes)
        activations = ((name, changes[m][1].get("activation")) for name, m in model.named_modules() if m in changes)
        report.fused.update((name, activation) for name, activation in activations if activation)
    for module, (new, attributes) in changes.items():
        own = own_class(type(module))
        module.__class__ = exchanged(type(module), new)
        mark(module, own, new, attributes)
    return report


def revert(model: Module) -> Module:
    """Undoes :func:`convert`: every converted module gets the class back that it had. Returns the model.

    Modules that were normext's own before stay normext's. It also works on a copy, or on what was unpickled.

    Raises:
        TypeError: if model is not a module.
    """
    _check("revert", model)
    for module in model.modules():
        before = unmark(module)
        if before is not None:
            module.__class__ = before
    return model


def register(cls: type[Module], converter: Converter) -> None:
    """Teaches :func:`convert` a class of one's own.

    Args:
        cls: modules of exactly this class are handed to the converter, before anything else is tried.
        converter: takes the module, changes nothing, and returns the class that it is to get, derived from ``cls``;
            or a sentence for the report, why it is to stay.

    Raises:
        TypeError: if cls is not a class of modules; or by :func:`convert`, if the converter returns anything else.

    Example:
        >>> class Scaled(torch.nn.LayerNorm):
        ...     def forward(self, input):
        ...         return 2 * super().forward(input)
        >>> class FastScaled(Scaled):
        ...     def forward(self, input):
        ...         return 2 * normext.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        >>> normext.register(Scaled, lambda module: FastScaled)
        >>> print(normext.convert(Scaled(8)))
             1  __main__.Scaled  converted
    """
    if not (isinstance(cls, type) and issubclass(cls, Module)):
        raise TypeError(f"register(): argument 'cls' must be a subclass of torch.nn.Module, not {cls!r}")
    _converters[cls] = converter


def _check(function: str, model: Any) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"{function}(): argument 'model' must be torch.nn.Module, not {type(model).__name__}")


def _is_norm(module: Module) -> bool:
    """Whether it is one of torch's norms, or called one and no block that has norms and layers in it."""
    cls = type(module)
    if isinstance(module, TORCHS) or cls in _converters:
        return True
    if own_class(cls).__module__.startswith("torch.nn.utils"):  # a parametrization
        return False
    name = module.original_name if isinstance(module, ScriptModule) else cls.__name__
    called = re.search("norm(?!alize)", name, re.IGNORECASE) is not None
    children = (child for name, child in module.named_children() if name != "parametrizations")
    return called and not any(child.state_dict(keep_vars=True) for child in children)


def _new_class(module: Module) -> type[Module] | str:
    """The class that the module is to get, or why it is to stay as it is."""
    cls = own_class(type(module))
    if isinstance(module, ScriptModule):
        return "it is scripted: convert before torch.jit.script"
    if "forward" in vars(module):
        return "its forward was replaced on the object"
    if cls in _converters:
        return _asked(_converters[cls], cls, module)
    unfit = _unfit(module)
    if unfit:
        return unfit
    base = namesake(cls)
    if base is not None and not _overrides(cls):
        if hasattr(NAMESAKES[base], "activation") and getattr(module, "activation", None) is not None:
            return "it has an attribute that is called activation"
        return NAMESAKES.get(cls) or joined(cls)
    if cls.__module__.startswith("torch.") or (base is None and isinstance(module, TORCHS)):
        return "normext has no such norm"
    if base is not None and cls.__module__.split(".")[0] not in LIBRARIES:
        return f"it overrides {_overrides(cls)} of torch.nn.{base.__name__}"
    if parametrize.is_parametrized(module):
        return "it is parametrized"
    beyond = list(inspect.signature(cls.forward).parameters)[2:]
    if beyond:
        return f"its forward takes more than a tensor: {', '.join(beyond)}"
    kind = recognize(module, cls)
    return kind if isinstance(kind, str) else joined(cls, kind)


def _asked(converter: Converter, cls: type[Module], module: Module) -> type[Module] | str:
    answer = converter(module)
    if isinstance(answer, str) or (isinstance(answer, type) and issubclass(answer, cls)):
        return answer
    raise TypeError(f"convert(): the converter of {_full_name(cls)} returned {answer!r}, not a class derived from it")


def _overrides(cls: type[Module]) -> str | None:
    """What the class, or one between it and torch.nn's, computes in another way, if anything."""
    own = itertools.takewhile(lambda c: c not in NAMESAKES, cls.__mro__)
    return next((name for c in own for name in COMPUTING if name in vars(c)), None)


def _unfit(module: Module) -> str | None:
    """What of the module's tensors normext has no kernels for, if anything."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is None or name == "num_batches_tracked":
            continue
        if tensor.dtype not in DTYPES:
            return f"{name} is {str(tensor.dtype).removeprefix('torch.')}, which normext does not take"
        if tensor.device.type not in DEVICES:
            return f"{name} is on {tensor.device.type}, which normext was not built for"
    return None


def _likeness(module: Module) -> Any:
    """Equal for modules that the same becomes of: classes and attributes are; sizes and values may differ."""
    named = [(name, t) for name, t in (*module._parameters.items(), *module._buffers.items()) if t is not None]
    tensors = [(name, t.dtype, t.device.type, is_lazy(t) or t.ndim) for name, t in named]
    sizes = {size for _, t in named if not is_lazy(t) for size in (t.shape, *t.shape)}
    attributes = [(name, _trait(value, sizes)) for name, value in vars(module).items() if name not in vars(BLANK)]
    return type(module), *tensors, *attributes, *((name, _likeness(child)) for name, child in module.named_children())


def _trait(value: Any, sizes: set[Any]) -> Any:
    """What an attribute may tell of how a module computes: itself if it is plain and not a size."""
    if not isinstance(value, (bool, int, float, str, tuple)):
        return id(value) if callable(value) else type(value)
    return "size" if isinstance(value, (int, tuple)) and value in sizes else repr(value)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
