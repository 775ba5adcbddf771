"""Loads the compiled extension, which registers ``torch.ops.normext.*``; says in one sentence why it cannot."""

import importlib.util
import os

REINSTALL = "pip install --no-build-isolation --force-reinstall --no-deps ."

try:
    import torch
except ImportError as error:
    raise ImportError(
        f"normext extends PyTorch, and torch is not installed: pip install torch, then {REINSTALL}"
    ) from error

if importlib.util.find_spec("normext._C") is None:
    raise ImportError(
        "normext's extension is not built in the folder it is imported from, "
        f"{os.path.dirname(__file__)}: build it there with make develop, or import the installed package from elsewhere"
    )
try:
    from normext import _C
except ImportError as error:
    raise ImportError(
        f"normext's compiled extension does not load with torch {torch.__version__} ({error}): "
        f"rebuild it for this torch with {REINSTALL}"
    ) from error

if _C.build_info["torch"] != torch.__version__:
    raise ImportError(
        f"normext was built for torch {_C.build_info['torch']}, and torch {torch.__version__} is installed: "
        f"rebuild it for this torch with {REINSTALL}"
    )

if _isa := os.environ.get("NORMEXT_ISA"):
    _C.set_isa(_isa)
