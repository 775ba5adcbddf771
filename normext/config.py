"""What was built, and what runs here."""

import platform

import torch

from normext import _C
from normext._version import __version__

__all__ = ["show_config"]


def show_config() -> None:
    """Prints versions, instruction sets, threads, OpenMP, CUDA architectures and what is enabled, one a line."""
    info = _C.build_info
    lines = {
        "normext": __version__,
        "torch": f"{torch.__version__} (built with {info['torch']})",
        "python": platform.python_version(),
        "compiler": info["compiler"],
        "instruction sets": f"{info['instruction_sets']}; in use: {_C.get_isa()}",
        "threads": f"{torch.get_num_threads()} (torch.set_num_threads changes it)",
        "OpenMP": info["openmp"],
        "CUDA architectures": info["cuda_architectures"] or "none: built for the CPU only",
        "nvcc": info["nvcc"] or "none",
        "enabled": ", ".join(_C.enabled_norms()) or "none of torch's norms (normext.enable)",
    }
    for name, value in lines.items():
        print(f"{name + ':':<20}{value}")
