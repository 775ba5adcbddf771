"""Where the figures come from: processor, memory, versions, commit."""

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

import normext
from normext import _C

ROOT = Path(__file__).parent.parent.resolve()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (model := re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE)):
        return model[1]
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    """What git answers; None outside a repository."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def waited() -> float:
    """Seconds that this thread was ready to run and had no core, since others had them; 0 where Linux does not tell."""
    schedstat = Path("/proc/self/schedstat")  # time on a core, time waiting for one (ns), time slices
    return int(schedstat.read_text().split()[1]) / 1e9 if schedstat.exists() else 0.0


def describe(device: str) -> dict[str, object]:
    """All that the figures depend on, ready for JSON."""
    changes = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    description: dict[str, object] = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": device,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "instruction_set": _C.get_isa(),
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "normext": normext.__version__,
        "compiler": _C.build_info["compiler"],
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties("cuda")
        description |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "nvcc": _C.build_info["nvcc"],
            "cuda_architectures": _C.build_info["cuda_architectures"],
        }
    return description


def slug(machine: dict[str, object]) -> str:
    """A folder's name for the machine, such as ``intel-xeon-2c-avx512`` or ``nvidia-h200``."""
    if "gpu" in machine:
        name = str(machine["gpu"])
    else:
        model = re.sub(r"\((R|TM)\)|\d+-Core|Processor|CPU|@.*", "", str(machine["processor"]), flags=re.IGNORECASE)
        name = f"{model} {machine['cores']}c {machine['instruction_set']}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
