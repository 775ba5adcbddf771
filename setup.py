"""pip's door to CMake: metadata stands in pyproject.toml, the build in CMakeLists.txt, what it asks for in building/.

Environment:
  MAX_JOBS              parallel compilers
  CXX                   the C++ compiler
  CUDA_HOME, CUDACXX    the CUDA toolkit, or its nvcc; else nvcc on the path, or in /usr/local/cuda
  TORCH_CUDA_ARCH_LIST  GPUs to build for, such as "8.0;9.0+PTX"; else those there are, and without any all that
                        normext and nvcc know
  FORCE_CUDA=1          fail rather than build without CUDA
  FORCE_CPU=1           build without CUDA, also where it could be built
  CMAKE_ARGS            more arguments for CMake
"""

import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent))  # pip does not

from building import ROOT, fail
from building.cuda import cuda_architectures, find_nvcc
from building.install import install
from building.toolchain import build_folder, find_compiler, find_tool

CPU_MINUTES, CUDA_MINUTES = 11, 3  # of one core; notes/systems.md


def torch_version() -> tuple[str, str | None]:
    """The version of the torch to build with, and of its CUDA."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no numpy, which a build does not need
            import torch
    except ImportError:
        fail(
            "building needs the PyTorch it will run with: install torch first (pip install torch), then run "
            "pip install --no-build-isolation ."
        )
    return torch.__version__, torch.version.cuda


class CMakeBuild(build_ext):
    """Builds the one extension module, normext._C, with CMake and ninja."""

    def build_extension(self, ext: Extension) -> None:
        version, cuda = torch_version()
        cmake, ninja, compiler = find_tool("cmake"), find_tool("ninja"), find_compiler()
        architectures, folder = cuda_architectures(cuda), build_folder(version)
        jobs = int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))
        is_new = not (folder / "build.ninja").exists()
        work = f"about {expected_minutes(architectures, jobs)} minutes" if is_new else "what has changed"
        print(f"normext: building in {folder.relative_to(ROOT)}, {jobs} files at a time: {work}", flush=True)

        environment = {"NINJA_STATUS": "[%f/%t, %es] ", **os.environ, "CXX": shlex.join(compiler)}
        configure = [
            cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DNORMEXT_CUDA_ARCHITECTURES={architectures}",
            *([f"-DCMAKE_CUDA_COMPILER={find_nvcc()}"] if architectures else []),
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]  # fmt: skip
        configured = subprocess.run(configure, env=environment, capture_output=True, text=True)
        print(configured.stderr, end="", file=sys.stderr, flush=True)
        if configured.returncode != 0:
            fail(first_error(configured.stderr))
        compile_ = [cmake, "--build", str(folder), "--target", "_C", "--parallel", str(jobs)]
        if subprocess.run(compile_, env=environment).returncode != 0:
            fail(f"the build failed; the compiler's own messages stand above (command: {shlex.join(compile_)})")
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        # In the tree too: Python, started there, finds the package that stands there, and not the installed one.
        install(folder / module.name, {module, ROOT / "normext" / module.name})


def expected_minutes(architectures: str, jobs: int) -> int:
    """How long a first build takes: on one core of a server CPU_MINUTES, and CUDA_MINUTES for each architecture."""
    count = len(architectures.split(",")) if architectures else 0
    return max(1, round((CPU_MINUTES + CUDA_MINUTES * count) / jobs))


def first_error(messages: str) -> str:
    """The sentence in CMake's first error, where it is one."""
    match = re.search(r"^CMake Error.*:\n((?:\n|  .*\n)+)", messages, re.MULTILINE)
    sentence = " ".join(match[1].split()) if match else ""
    return sentence if 0 < len(sentence) < 300 else "the build failed; CMake's own messages stand above"


if __name__ == "__main__":
    if int(setuptools.__version__.split(".")[0]) < 77:  # older ones do not know pyproject.toml's licence expression
        fail(f'building needs setuptools 77, and {setuptools.__version__} is here: pip install "setuptools>=77"')
    setup(ext_modules=[Extension("normext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
