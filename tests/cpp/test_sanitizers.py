"""The kernels under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer: see kernels.cpp.

That they find what they are for was tried with planted faults, one at a time, each found in the first case that runs
into it:

- for_vectors() in passes.h takes one element too many in its last step: where a masked vector instruction does it,
  AddressSanitizer does not see it and the page behind each array does;
- normalize() in normalized_rows.h reads x[-1]: poisoned memory;
- by_rows() in row_norm_backward.h gives every thread the totals of part 0: a data race.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from normext._C import supported_isas

ROOT = Path(__file__).resolve().parents[2]

# cmake and ninja may stand beside this Python without being on the path.
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def skip_without(sanitizers: str, folder: Path) -> None:
    """Skips unless the compiler can build, and this machine run, an empty program with the sanitizers."""
    for tool in ("cmake", "ninja"):
        if not shutil.which(tool, path=ENVIRONMENT["PATH"]):
            pytest.skip(f"{tool} not found: pip install {tool}")
    source, program = folder / "empty.cpp", folder / "empty"
    source.write_text("int main() {}\n")
    build = run(os.environ.get("CXX", "c++"), f"-fsanitize={sanitizers}", source, "-o", program)
    if build.returncode != 0:
        pytest.skip(f"the compiler has no runtime for -fsanitize={sanitizers}: {build.stdout.strip()[-300:]}")
    if (empty := run(program)).returncode != 0:
        pytest.skip(
            f"programs with -fsanitize={sanitizers} do not start on this machine: {empty.stdout.strip()[-300:]}"
        )


# Every instruction set reads and writes memory in its own way; threads share the work in the same way on all of them.
# Each takes minutes to build: all but the widest are left to -m slow.
*NARROWER, WIDEST = supported_isas()
CASES = [("address,undefined", WIDEST), ("thread", WIDEST)]
CASES += [pytest.param("address,undefined", isa, marks=pytest.mark.slow) for isa in NARROWER]


@pytest.mark.parametrize(("sanitizers", "isa"), CASES)
def test_kernels(sanitizers: str, isa: str, tmp_path: Path) -> None:
    skip_without(sanitizers, tmp_path)
    folder = ROOT / "build" / f"sanitize-{sanitizers.replace(',', '-')}-{isa}"
    options = [f"-DNORMEXT_SANITIZE={sanitizers}", f"-DNORMEXT_CHECKED_ISA={isa}"]
    for command in (
        ["cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, *options],
        ["cmake", "--build", folder, "--target", "cpu_checks"],
        [folder / "cpu_checks", f"{isa}, "],
    ):
        result = run(*command)
        assert result.returncode == 0, f"{command[0]} failed:\n{result.stdout[-8000:]}"
    assert " 0 runs" not in result.stdout
