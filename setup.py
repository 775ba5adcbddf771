"""pip's door to CMake: metadata stands in pyproject.toml, the build in CMakeLists.txt.

Environment: MAX_JOBS (parallel compilers), CXX (the compiler), FORCE_CUDA (fail rather than build without CUDA),
CMAKE_ARGS (more arguments for CMake).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def fail(message: str) -> None:
    """Ends the build with one sentence, not a traceback."""
    raise SystemExit(f"\nnormext: {message}\n")


class CMakeBuild(build_ext):
    """Builds the one extension module, normext._C, with CMake and ninja."""

    def build_extension(self, ext: Extension) -> None:
        try:
            import torch
        except ImportError:
            fail(
                "building needs the PyTorch it will run with: install torch first (pip install torch), then run "
                "pip install --no-build-isolation ."
            )
        if not (shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")):
            fail("no C++ compiler found: install g++ 12 or later (Debian, Ubuntu: apt install g++), or set CXX.")
        for tool in ("cmake", "ninja"):
            if not shutil.which(tool):
                fail(f"{tool} not found: pip install {tool}")

        if os.environ.get("FORCE_CUDA", "0") == "1":
            fail("FORCE_CUDA=1 asks for CUDA kernels, and this version has none yet: unset it to build for the CPU.")

        # Not setuptools' folder, which is a new one for every editable build: this one keeps what has not changed.
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-torch-{torch.__version__}"
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]  # fmt: skip
        compile_ = ["cmake", "--build", str(build), "--target", "_C"]
        if jobs := os.environ.get("MAX_JOBS"):
            compile_ += ["--parallel", jobs]
        for command in (configure, compile_):
            if subprocess.run(command).returncode != 0:
                fail(f"the build failed; the compiler's own messages stand above (command: {' '.join(command)})")
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        module.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / module.name, module)


if int(setuptools.__version__.split(".")[0]) < 77:  # older ones do not know pyproject.toml's licence expression
    fail(f'building needs setuptools 77 or later, and {setuptools.__version__} is here: pip install "setuptools>=77"')
setup(ext_modules=[Extension("normext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
