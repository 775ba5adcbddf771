"""The rules of the layers and of the build that a compiler does not enforce."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def found(pattern: str, files: list[Path], comment: str = "") -> list[str]:
    """Lines that match, as "file:line: text"; what follows ``comment`` in a line does not count."""
    hits = []
    for file in files:
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
            code = line.split(comment)[0] if comment else line
            if re.search(pattern, code):
                hits.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    return hits


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]


def test_kernels_know_nothing_of_torch() -> None:
    assert not found(r"include.*(torch|ATen|c10)/", sources("csrc/ops", "csrc/cpu", "csrc/cuda"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("family, others", [("rows", "channels"), ("channels", "rows"), ("elements", "rows|channels")])
def test_rows_and_channels_stand_side_by_side(device: str, family: str, others: str) -> None:
    """Over elements, which know neither of them."""
    assert not found(rf"include.*/({others})/", sources(f"csrc/{device}/{family}"))


def test_kernels_use_no_cxx_stream() -> None:
    """A stream needs the process's locales and facets, which a module with a libstdc++ of its own does not share."""
    streams = r"#\s*include\s*<(ios|iosfwd|iomanip|locale|print|streambuf|\w*stream)>"
    assert not found(streams, sources("csrc/ops", "csrc/cpu", "csrc/cuda"))


def test_cuda_kernels_are_launched_by_the_platform_header() -> None:
    """Anything else the emulator would not see."""
    kernels = [path for path in sources("csrc/cuda") if path.name != "platform.cuh"]
    assert not found("<<<", kernels, comment="//")


def test_cuda_kernels_add_in_a_fixed_order() -> None:
    """Atomic additions come in another order on every run, and so do the last bits of their sum."""
    assert not found("atomicAdd", sources("csrc/cuda"), comment="//")


def test_the_build_is_portable_and_exact() -> None:
    build = [ROOT / name for name in ("CMakeLists.txt", "setup.py", "pyproject.toml", "Makefile")]
    build += sources("building")
    assert not found(r"-march=native|-mtune=native|-ffast-math|-Ofast|-use_fast_math", build, comment="#")


def test_no_path_of_a_machine() -> None:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    files = [path for name in listing.stdout.split("\0") if (path := ROOT / name).is_file()]
    machine = [re.escape(f"{path}/") for path in (ROOT, Path(sys.prefix)) if len(path.parts) > 2]
    assert not found("|".join([r"(?<![\w.])/(home|root|Users)/\w", *machine]), files)
