"""What a wheel needs where it is installed: ``python -m building.wheel dist/*.whl``, in the environment it is of."""

import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from building import fail, output_of

OF_TORCH = re.compile(r"libtorch|libc10|libcudart")  # torch's process has loaded them before


def needed(module: Path) -> tuple[list[str], dict[str, str]]:
    """The libraries that a module names, and the newest version of each family of symbols that it asks for."""
    text = output_of("objdump", "-p", str(module)) or fail("objdump says nothing of the module: install binutils")
    newest: dict[str, str] = {}
    for family, version in re.findall(r"\b(GLIBC|GLIBCXX|CXXABI)_(\d[\d.]*)", text):
        newest[family] = max(version, newest.get(family, "0"), key=lambda v: [int(part) for part in v.split(".")])
    return re.findall(r"NEEDED +(\S+)", text), newest


def describe(wheel: Path) -> None:
    """Prints sizes and needs, and what auditwheel says of it."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        (module,) = Path(folder).glob("normext/_C*.so")
        size = module.stat().st_size
        libraries, versions = needed(module)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, its module {size / 1e6:.1f} MB. It needs:")
    print(f"  Python     {sys.version_info.major}.{sys.version_info.minor}, torch {torch.__version__}")
    print(f"  of torch   {' '.join(name for name in libraries if OF_TORCH.match(name))}")
    print(f"  of others  {' '.join(name for name in libraries if not OF_TORCH.match(name))}")
    print(f"  versions   {', '.join(f'{family} {version}' for family, version in sorted(versions.items()))}")
    if tool := shutil.which("auditwheel"):
        print(output_of(tool, "show", str(wheel)).strip())


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        describe(Path(argument))
