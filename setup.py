"""pip's door to CMake: metadata stands in pyproject.toml, the build in CMakeLists.txt.

Environment:
  MAX_JOBS              parallel compilers
  CXX                   the C++ compiler
  CUDA_HOME, CUDACXX    the CUDA toolkit, or its nvcc; else nvcc on the path, or in /usr/local/cuda
  TORCH_CUDA_ARCH_LIST  GPUs to build for, such as "8.0;9.0+PTX"; else all that normext and nvcc know
  FORCE_CUDA=1          fail rather than build without CUDA
  FORCE_CPU=1           build without CUDA, also where it could be built
  CMAKE_ARGS            more arguments for CMake
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
ARCHITECTURES = ["75", "80", "86", "89", "90", "100", "120"]  # compute capabilities without their dot, ascending


def fail(message: str) -> NoReturn:
    """Ends the build with one sentence, not a traceback."""
    raise SystemExit(f"\nnormext: {message}\n")


def output_of(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True).stdout


def find_nvcc() -> str:
    """The CUDA compiler, where people's environments say it is: a place they name counts alone. Empty if not found."""
    if home := os.environ.get("CUDA_HOME"):
        places = [f"{home}/bin/nvcc"]
    elif compiler := os.environ.get("CUDACXX"):
        places = [compiler]
    else:
        places = ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((found for place in places if (found := shutil.which(place))), "")


def choose_architectures(wanted: str, supported: list[str]) -> str:
    """CMakeLists.txt's NORMEXT_CUDA_ARCHITECTURES, such as ``80,90+PTX``, from TORCH_CUDA_ARCH_LIST.

    Where that is empty, all there is, and the newest as PTX too: newer GPUs compile that when they load it.
    """
    if not wanted:
        return ",".join(name for name in ARCHITECTURES if name in supported) + "+PTX"
    names = []
    for item in re.split(r"[\s;,]+", wanted.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)((?:\+PTX)?)", item)
        if not match:
            fail(f'TORCH_CUDA_ARCH_LIST="{wanted}" is not understood: expected a list such as "8.0;9.0+PTX".')
        major, minor, suffix, ptx = match.groups()
        if major + minor not in supported:
            fail(f'TORCH_CUDA_ARCH_LIST="{wanted}" asks for {item}, which this nvcc does not know.')
        names.append(major + minor + suffix + ptx)
    return ",".join(names)


def why_not_cuda(cuda: str | None, nvcc: str) -> str | None:
    """What stands between torch.version.cuda, this nvcc and a CUDA build; None if nothing does."""
    if not cuda:
        return "the torch that is installed is a CPU build; install a CUDA build of it"
    if not nvcc:
        return f"nvcc was not found; install the toolkit of CUDA {cuda}, or set CUDA_HOME to where it is"
    release = re.search(r"release ([\d.]+)", output_of(nvcc, "--version"))
    version = release[1] if release else "of unknown version"
    if version.split(".")[0] != cuda.split(".")[0]:  # minor versions of one major version go together
        return f"torch is built with CUDA {cuda} and {nvcc} is CUDA {version}; set CUDA_HOME to one of torch's version"
    return None


def cuda_arguments(cuda: str | None) -> list[str]:
    """CMake's arguments for a build with or without CUDA, given torch.version.cuda.

    No GPU is asked for: the machine that builds need not have one.
    """
    cpu_only = ["-DNORMEXT_CUDA_ARCHITECTURES="]
    if os.environ.get("FORCE_CPU", "0") == "1":
        return cpu_only
    nvcc = find_nvcc()
    if problem := why_not_cuda(cuda, nvcc):
        if os.environ.get("FORCE_CUDA", "0") == "1":
            fail(f"FORCE_CUDA=1 asks for CUDA kernels, but {problem}.")
        if cuda:
            warning = f"normext: BUILDING FOR THE CPU ONLY: {problem}."
            print("*" * len(warning), warning, "*" * len(warning), sep="\n", file=sys.stderr, flush=True)
        return cpu_only
    supported = re.findall(r"sm_(\d+)", output_of(nvcc, "--list-gpu-code"))
    architectures = choose_architectures(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), supported)
    return [f"-DNORMEXT_CUDA_ARCHITECTURES={architectures}", f"-DCMAKE_CUDA_COMPILER={nvcc}"]


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

        # Not setuptools' folder, which is a new one for every editable build: this one keeps what has not changed.
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-torch-{torch.__version__}"
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            *cuda_arguments(torch.version.cuda),
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


if __name__ == "__main__":
    if int(setuptools.__version__.split(".")[0]) < 77:  # older ones do not know pyproject.toml's licence expression
        fail(f'building needs setuptools 77, and {setuptools.__version__} is here: pip install "setuptools>=77"')
    setup(ext_modules=[Extension("normext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
