"""Whether a module works: a script, for a process of its own, that takes the module's path.

torch is imported first: it has loaded the libraries that the module needs, as it has in use.
"""

import ctypes
import importlib.util
import math
import os
import sys
from collections.abc import Callable

import torch

CLASSIC = "_ZNSt6locale7classicEv"  # std::locale::classic(), which every C++ stream needs


def has_its_own_libstdcxx(module: str) -> bool:
    """Whether libstdc++ was linked into the module: the loader, asked for a name in it, looks into itself first."""

    class Info(ctypes.Structure):
        _fields_ = tuple((name, ctypes.c_void_p) for name in ("file", "base", "symbol", "address"))

    info, function = Info(), getattr(ctypes.CDLL(module), CLASSIC)
    ctypes.CDLL(None).dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(info))
    return os.path.samefile(ctypes.string_at(info.file), module)


def run_norm(layer_norm: Callable[[torch.Tensor, list[int]], torch.Tensor]) -> None:
    """One norm, and one message written by a C++ stream, to its end."""
    output = layer_norm(torch.tensor([1.0, 2.0, 3.0, 4.0]), [4]).tolist()
    expected = [(x - 2.5) / math.sqrt(1.25 + 1e-5) for x in (1, 2, 3, 4)]
    if not all(math.isclose(*pair, rel_tol=1e-6) for pair in zip(output, expected, strict=True)):
        raise SystemExit(f"its layer_norm of 1, 2, 3, 4 is {output}, and {expected} was expected")
    message, end = "", "but got input of size[2, 4]"
    try:
        layer_norm(torch.zeros(2, 4), [5])
    except RuntimeError as error:
        message = str(error)
    if not message.endswith(end):
        raise SystemExit(f'an error message of its is "{message}", and should end in "{end}"')


if __name__ == "__main__":
    if has_its_own_libstdcxx(sys.argv[1]):
        raise SystemExit(
            "it has a libstdc++ of its own inside, which breaks C++ streams; look for one in CXXFLAGS, LDFLAGS and "
            "CMAKE_ARGS"
        )
    spec = importlib.util.spec_from_file_location("normext._C", sys.argv[1])
    assert spec and spec.loader
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    run_norm(torch.ops.normext.layer_norm)
