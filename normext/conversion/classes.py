"""Which class a converted module gets, and which it had before.

A module of ``torch.nn`` gets normext's class of the same name. One of a class that adds to it, or of another library,
gets a class of both: what it was, it still is, under its own name, and it is nothing that it was not, since optimizers,
freezing and weight decay go by ``isinstance``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from normext import modules

Computation = Callable[[Any, Tensor], Tensor]  # takes a module and its input; hashable, and can be pickled
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# torch.nn's class -> normext's of the same name
NAMESAKES: dict[type[Module], type[Module]] = {
    getattr(torch.nn, name): getattr(modules, name) for name in modules.__all__ if hasattr(torch.nn, name)
}
_TORCHS = {ours: theirs for theirs, ours in NAMESAKES.items()}
_joined: dict[Any, type[Module]] = {}
WRAPPERS = ("torch.nn.utils.parametrize", "torch.distributed.fsdp")
_MARK = "_before_normext"  # in the dictionary of a converted module


class Joined:
    """In front of the class that a module had: what lets it be pickled."""

    joined_from: tuple[type[Module], Computation | None]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """By what it is made of, since the class has no place in a module to be found at."""
        return _new, self.joined_from, *super().__reduce_ex__(protocol)[2:]  # type: ignore[return-value]


class Computed(Joined):
    """In front of another library's class: its forward is computed by normext."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes one tensor that normext knows; anything else, a proxy or an unusual dtype, goes to the class's own."""
        cls, compute = self.joined_from
        if (
            compute is None
            or len(args) != 1
            or kwargs
            or not isinstance(args[0], Tensor)
            or args[0].dtype not in DTYPES
        ):
            return cls.forward(self, *args, **kwargs)  # type: ignore[arg-type]
        return compute(self, args[0])

    def __prepare_scriptable__(self) -> None:
        """Asked for by ``torch.jit.script``, which cannot compile :meth:`forward`."""
        name = self.joined_from[0].__qualname__
        raise RuntimeError(f"torch.jit.script: {name} is computed by normext; trace it, or normext.revert(model) first")


def namesake(cls: type[Module]) -> type[Module] | None:
    """The class of ``torch.nn`` that this one is or derives from, if normext has one of that name."""
    return next((c for c in cls.__mro__ if c in NAMESAKES), None)


def joined(original: type[Module], compute: Computation | None = None) -> type[Module]:
    """The class ``original``, computed by a kind of norm, or as the norm of ``torch.nn`` that it derives from."""
    made_from = original, compute
    if made_from not in _joined:
        base = namesake(original)
        bases = (Computed if compute else Joined, original, *([NAMESAKES[base]] if base else []))
        names = {"__module__": __name__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
        _joined[made_from] = type(original)(original.__name__, bases, {**names, "joined_from": made_from})  # type: ignore[misc]
    return _joined[made_from]


def _new(original: type[Module], compute: Computation | None) -> Module:
    """An empty module of a joined class, for pickle and deepcopy."""
    cls = joined(original, compute)
    return cls.__new__(cls)


def is_ours(cls: type) -> bool:
    """Whether modules of this class are computed by normext."""
    return any(c in _TORCHS or c is Joined for c in cls.__mro__)


def mark(module: Module, old: type[Module], new: type[Module], attributes: dict[str, Any]) -> None:
    """Gives the module attributes, and remembers them and which class it had: in itself, and so for copies."""
    vars(module).update(attributes)
    known = None if issubclass(new, Joined) else new  # a joined class knows, and cannot be pickled
    vars(module)[_MARK] = old, known, list(attributes)


def unmark(module: Module) -> type | None:
    """The class that the module had before it was converted, if it was; and forgets what :func:`mark` gave it."""
    if _MARK not in vars(module):
        return None
    old, new, attributes = vars(module).pop(_MARK)
    for name in attributes:
        del vars(module)[name]
    return _before(type(module), old, new)


def _before(cls: type, old: type, new: type | None) -> type:
    if cls is new:
        return old
    if cls in _TORCHS:  # a lazy module has become another
        return _TORCHS[cls]
    if "joined_from" in vars(cls):
        return cls.joined_from[0]  # type: ignore[attr-defined]
    if not is_ours(cls) and new not in cls.__mro__:
        return cls
    return rebased(cls, tuple(_before(base, old, new) for base in cls.__bases__))


def own_class(cls: type) -> Any:
    """Without the classes that parametrizations and FSDP make around a module's own."""
    return own_class(cls.__bases__[-1]) if cls.__module__.startswith(WRAPPERS) else cls


def exchanged(cls: type, new: type) -> Any:
    """The class with another in the place of the module's own."""
    return rebased(cls, (*cls.__bases__[:-1], exchanged(cls.__bases__[-1], new))) if own_class(cls) is not cls else new


def rebased(cls: type, bases: tuple[type, ...]) -> Any:
    """The same class over other bases."""
    names = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls)(cls.__name__, bases, names)
