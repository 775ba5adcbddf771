"""Torch's own norm operators, computed by normext's kernels in the whole process."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from normext import _C

__all__ = ["disable", "enable", "enabled"]


def enable(norms: str | Iterable[str] | None = None) -> None:
    """Has torch's own norm operators computed by normext's kernels, in the whole process, until :func:`disable`.

    The model stays as it is, modules and functions of torch.nn included, and with it all that looks at types or traces:
    TorchScript, torch.fx, exporters, quantization, nested tensors, wrappers. Eager calls from then on run normext's
    kernels, forward and backward, also in other threads and in programs that were scripted or exported before. What
    these do not take (another device, dtype, layout) torch computes as before. Results and gradients have torch's
    shapes, dtypes and memory format, what is saved between forward and backward too, so that either may be computed
    before, and the other after.

    ``torch.compile`` composes norms of its own operators and asks for no kernel: there ``normext``'s modules serve.

    Args:
        norms: a name or several of ``"layer_norm"``, ``"rms_norm"``, ``"batch_norm"`` (which InstanceNorm is computed
            by, too), ``"group_norm"``; all of them if not given. Those that are enabled already stay so.

    Raises:
        ValueError: for a name that is none of these.

    Example::

        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
        >>> normext.enable()
        >>> y = model(torch.randn(2, 8))  # LayerNorm by normext
        >>> normext.disable()
    """
    _C.set_enabled_norms([*_C.enabled_norms(), *_names(norms)])


def disable(norms: str | Iterable[str] | None = None) -> None:
    """Gives torch's norm operators back to torch's kernels: those of ``norms``, or all.

    Args:
        norms: as in :func:`enable`. Those that are not enabled are left as they are.

    Raises:
        ValueError: for a name of no norm.
    """
    given = _names(norms)
    _C.set_enabled_norms([norm for norm in _C.enabled_norms() if norm not in given])


@contextmanager
def enabled(norms: str | Iterable[str] | None = None) -> Iterator[None]:
    """:func:`enable` for a block; afterwards, also after an exception, what was enabled before is enabled.

    What is enabled holds for the whole process: the block's time is what is bounded, not its thread.

    Example::

        >>> with normext.enabled("layer_norm"):
        ...     y = torch.nn.functional.layer_norm(torch.randn(2, 8), [8])
    """
    before = _C.enabled_norms()
    enable(norms)
    try:
        yield
    finally:
        _C.set_enabled_norms(before)


def _names(norms: str | Iterable[str] | None) -> list[str]:
    known = _C.replaceable_norms()
    if norms is None:
        return known
    given = [norms] if isinstance(norms, str) else list(norms)
    for name in given:
        if name not in known:
            raise ValueError(f"expected norms out of {', '.join(known)}, but got {name!r}")
    return given
