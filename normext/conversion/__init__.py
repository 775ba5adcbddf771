"""A model's norm modules computed by normext, and back: the modules stay, their classes change.

``convert.py`` goes through a model, ``classes.py`` makes the classes, ``kinds.py`` has the norms of other libraries,
and ``probe.py`` finds out which of them a module is.
"""

from normext.conversion.convert import Left, Report, convert, register, revert

__all__ = ["Left", "Report", "convert", "register", "revert"]
