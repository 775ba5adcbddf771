"""Where CUDA's headers are: the emulator takes types and the arithmetic of the half types from them."""

import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# The packages for pip that they are spread over, and a header of each.
PACKAGES = "nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl"
NEEDED = ["driver_types.h", "crt/host_defines.h", "nv/target"]


def _candidates() -> Iterator[Path]:
    if home := os.environ.get("CUDA_HOME"):
        yield Path(home) / "include"
    if nvcc := shutil.which("nvcc"):
        yield Path(nvcc).resolve().parent.parent / "include"
    yield Path("/usr/local/cuda/include")
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    yield from sorted(packages.glob("cu[0-9]*/include"), reverse=True)  # cu13: before, each had a folder of its own


def cuda_include() -> Path | None:
    """The include folder of a CUDA toolkit or of NVIDIA's packages for pip, if this machine has one."""
    return next((folder for folder in _candidates() if all((folder / name).exists() for name in NEEDED)), None)
