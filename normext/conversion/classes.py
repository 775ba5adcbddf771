"""Which class a converted module gets, and which it had before.

A module of ``torch.nn`` gets normext's class of the same name. One of a class that adds to it, or of another library,
gets a class of both: what it was, it still is, under its own name, and it is nothing that it was not, since optimizers,
freezing and weight decay go by ``isinstance``.
"""

from typing import Any

import torch
from torch.nn import Module
from torch.nn.utils import parametrize

from normext import modules

Settings = tuple[tuple[str, Any], ...]  # attributes of a class
# torch.nn's class -> normext's of the same name
NAMESAKES: dict[type[Module], type[Module]] = {
    getattr(torch.nn, name): getattr(modules, name) for name in modules.__all__ if hasattr(torch.nn, name)
}
_TORCHS = {ours: theirs for theirs, ours in NAMESAKES.items()}
_joined: dict[Any, type[Module]] = {}
_MARK = "_before_normext"  # in the dictionary of a converted module


class Joined:
    """In front of the class that a module had: what lets it be pickled."""

    joined_from: tuple[type[Module], type | None, Settings]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """By the classes that it is made of, since it has no place in a module to be found at."""
        return _new, self.joined_from, *super().__reduce_ex__(protocol)[2:]  # type: ignore[return-value]


def namesake(cls: type[Module]) -> type[Module] | None:
    """The class of ``torch.nn`` that this one is or derives from, if normext has one of that name."""
    return next((c for c in cls.__mro__ if c in NAMESAKES), None)


def joined(original: type[Module], kind: type | None = None, settings: Settings = ()) -> type[Module]:
    """The class ``original``, computed by ``kind`` with these settings, or as the norm of torch.nn it derives from."""
    made_from = (original, kind, settings)
    if made_from not in _joined:
        base = namesake(original)
        bases = [Joined, *([kind] if kind else []), original, *([NAMESAKES[base]] if base else [])]
        names: dict[str, Any] = {
            "__module__": __name__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
        }
        names |= {**dict(settings), "joined_from": made_from}
        _joined[made_from] = type(original)(original.__name__, tuple(bases), names)  # type: ignore[misc]
    return _joined[made_from]


def _new(*made_from: Any) -> Module:
    """An empty module of a joined class, for pickle and deepcopy."""
    cls = joined(*made_from)
    return cls.__new__(cls)


def is_ours(cls: type) -> bool:
    """Whether modules of this class are computed by normext."""
    return any(c in _TORCHS or c is Joined for c in cls.__mro__)


def mark(module: Module, old: type[Module], new: type[Module]) -> None:
    """Remembers, in the module, which class it had, for a copy and for what is unpickled as well."""
    vars(module)[_MARK] = old, None if issubclass(new, Joined) else new  # a joined class knows, and cannot be pickled


def unmark(module: Module) -> type | None:
    """The class that the module had before it was converted, if it was; and forgets it."""
    mark = vars(module).pop(_MARK, None)
    return mark and _before(type(module), *mark)


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


def rebased(cls: type, bases: tuple[type, ...]) -> Any:
    """The same class over other bases: for those that torch makes around a module's own, as parametrizations do."""
    names = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls)(cls.__name__, bases, names)


def parametrized(module: Module) -> bool:
    """Whether the module's class is one that ``torch.nn.utils.parametrize`` has put over its own."""
    return parametrize.is_parametrized(module)
