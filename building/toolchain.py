"""The tools of a build, and the folder that belongs to them."""

import hashlib
import importlib
import os
import shlex
import shutil
import sys
from pathlib import Path

from building import ROOT, fail
from building.cuda import find_nvcc

FOLDERS = {"cmake": "CMAKE_BIN_DIR", "ninja": "BIN_DIR"}  # where their Python packages say they are


def find_tool(name: str) -> str:
    """Cmake or ninja: the environment's own, which need not be on the path; else the path's."""
    try:
        folder = getattr(importlib.import_module(name), FOLDERS[name], "")
    except ImportError:
        folder = ""
    found = shutil.which(name, path=folder) or shutil.which(name)
    return found or fail(f"{name} not found: pip install {name}")


def find_compiler() -> list[str]:
    """The C++ compiler: CXX, which may come with arguments, or behind a launcher such as ccache; else the system's."""
    words = shlex.split(os.environ.get("CXX", "")) or ["c++" if shutil.which("c++") else "g++"]
    program = shutil.which(words[0])
    if not program:
        fail(f"no C++ compiler found ({words[0]}): apt install g++ (12 or later; Debian, Ubuntu), or set CXX.")
    return [program, *words[1:]]


def build_folder(torch_version: str) -> Path:
    """The folder to build in: it keeps what has not changed, also from one editable build to the next.

    What CMake asks for only once, and then keeps, is in its name: the compilers and their flags.
    """
    compiler = find_compiler()
    flags = [os.environ.get(name, "") for name in ("CXXFLAGS", "CUDAFLAGS", "LDFLAGS", "CMAKE_ARGS")]
    kept = "\0".join([os.path.realpath(compiler[0]), *compiler, find_nvcc(), *flags])
    digest = hashlib.sha256(kept.encode()).hexdigest()[:8]
    names = [Path(word).name for word in compiler if not word.startswith("-")]
    return ROOT / "build" / "-".join([sys.implementation.cache_tag, "torch", torch_version, *names, digest])
