"""With or without CUDA, and for which GPUs."""

import os
import re
import shutil
import sys
from collections.abc import Iterable

from building import fail, output_of

ARCHITECTURES = ["75", "80", "86", "89", "90", "100", "120"]  # compute capabilities without their dot, ascending


def find_nvcc() -> str:
    """The CUDA compiler, where people's environments say it is: a place they name counts alone. Empty if not found."""
    if home := os.environ.get("CUDA_HOME"):
        places = [f"{home}/bin/nvcc"]
    elif compiler := os.environ.get("CUDACXX"):
        places = [compiler]
    else:
        places = ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((found for place in places if (found := shutil.which(place))), "")


def visible_gpus() -> list[tuple[int, int]]:
    """The compute capabilities of the GPUs that torch sees."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_capability(index) for index in range(count)]


def choose_architectures(wanted: str, supported: list[str], gpus: Iterable[tuple[int, int]] = ()) -> str:
    """CMakeLists.txt's NORMEXT_CUDA_ARCHITECTURES, such as ``80,90+PTX``, from TORCH_CUDA_ARCH_LIST.

    Where that is empty, the GPUs there are, as for torch's own extensions; where there are none, all that this nvcc
    and normext know. The newest comes as PTX too: newer GPUs compile that when they load it.
    """
    if wanted:
        return ",".join(read_list(wanted, supported))
    known = [name for name in supported if int(name) >= int(ARCHITECTURES[0])]
    names = set()
    for major, minor in gpus:  # code for an older one of a generation runs on a newer one, which nvcc may not know
        names.update(sorted((name for name in known if int(name) <= 10 * major + minor), key=int)[-1:])
    return ",".join(sorted(names, key=int) or [name for name in ARCHITECTURES if name in known]) + "+PTX"


def read_list(wanted: str, supported: list[str]) -> list[str]:
    """The architectures that TORCH_CUDA_ARCH_LIST names."""
    names = []
    for item in re.split(r"[\s;,]+", wanted.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)((?:\+PTX)?)", item)
        if not match:
            fail(f'TORCH_CUDA_ARCH_LIST="{wanted}" is not understood: expected a list such as "8.0;9.0+PTX".')
        major, minor, suffix, ptx = match.groups()
        if major + minor not in supported:
            fail(f'TORCH_CUDA_ARCH_LIST="{wanted}" asks for {item}, which this nvcc does not know.')
        names.append(major + minor + suffix + ptx)
    return names


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


def cuda_architectures(cuda: str | None) -> str:
    """The architectures to build for, given torch.version.cuda; none, for the CPU only, if that is what can be had."""
    if os.environ.get("FORCE_CPU", "0") == "1":
        return ""
    nvcc = find_nvcc()
    if problem := why_not_cuda(cuda, nvcc):
        if os.environ.get("FORCE_CUDA", "0") == "1":
            fail(f"FORCE_CUDA=1 asks for CUDA kernels, but {problem}.")
        if cuda:
            warning = f"normext: BUILDING FOR THE CPU ONLY: {problem}."
            print("*" * len(warning), warning, "*" * len(warning), sep="\n", file=sys.stderr, flush=True)
        return ""
    supported = re.findall(r"sm_(\d+)", output_of(nvcc, "--list-gpu-code"))
    return choose_architectures(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), supported, visible_gpus())
