"""The CUDA kernels, emulated, against float64 oracles: see tests/cpp/kernels.cpp for what, emulated.cpp for how.

Under AddressSanitizer and UndefinedBehaviorSanitizer in every schedule, while it is counted what has run: every line
of csrc/cuda, and every kernel for every dtype and shape of launch.

That they find what they are for was tried with faults planted in the kernels, one at a time, each found within seconds:

- GroupSum without its barrier, or with one buffer instead of two in turn: wrong values;
- rows that share a warp and leave the loop of row_statistics() one by one: lanes wait for lanes that have returned;
- blocks of a cluster that return before their peers have read their sums: memory of a block that has exited is read;
- the exchange's memory reused for the sums of rows without a barrier between: wrong values, in some schedules;
- a stage of a ring that is filled again while its row is read: AddressSanitizer, for it is on its way; a ring that does
  not change its parity: an error;
- in a ring, sums of warps that are not there and that are not set to zero, or the sums of a block's second hundred rows
  stored where another block's are: wrong values;
- in clusters of a ring, one buffer of messages instead of two in turn (in some schedules), the wrong parity of theirs,
  bytes that are not expected, a block that does not wait for its last messages: AddressSanitizer, for they are on their
  way; a last part as long as the others: AddressSanitizer; a part's own mean taken for the row's, or backward
  sums stored from the row's beginning on: wrong values; rows given to blocks as if they were clusters: a deadlock. A
  cluster that does not meet before its first row is not found here, but by test_cubins.py, which counts the barriers;
- in pairs of a ring's blocks, sums left over a row that is still read, or read before the pair has met, or from the
  block's own memory, or stored by both: wrong values; a block that does not wait for its peer at the end: an error;
- store_row() stores one element too many: AddressSanitizer.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from line_counts import line_counts
from toolkit import PACKAGES, cuda_include

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "emulated-address-undefined"
SCHEDULES = ["forward schedule", "backward schedule", "random schedule"]

# cmake and ninja may stand beside this Python without being on the path.
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

pytestmark = pytest.mark.skipif(not cuda_include(), reason=f"no CUDA headers found: pip install {PACKAGES}")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


@pytest.fixture(scope="module")
def outcomes() -> dict[str, subprocess.CompletedProcess[str]]:
    """What the program of checks says of each schedule; the counts of what has run lie in its build folder."""
    headers = f"-DCUDAToolkit_INCLUDE_DIR={cuda_include()}"
    for command in (
        ["cmake", "-G", "Ninja", "-S", ROOT, "-B", FOLDER, "-DNORMEXT_SANITIZE=address,undefined", headers],
        ["cmake", "--build", FOLDER, "--target", "emulated_checks"],
    ):
        result = run(*command)
        assert result.returncode == 0, f"{command[0]} failed:\n{result.stdout[-8000:]}"
    for counts in FOLDER.rglob("*.gcda"):
        counts.unlink()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        results = threads.map(lambda name: run(FOLDER / "emulated_checks", name), SCHEDULES)
        return dict(zip(SCHEDULES, results, strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_with_sanitizers(outcomes: dict[str, subprocess.CompletedProcess[str]], schedule: str) -> None:
    assert outcomes[schedule].returncode == 0, outcomes[schedule].stdout[-8000:]
    assert " 0 results wrong" in outcomes[schedule].stdout


@pytest.mark.usefixtures("outcomes")
def test_every_line_and_every_kernel_has_run() -> None:
    lines, functions = line_counts(FOLDER, ROOT / "csrc" / "cuda")
    assert lines and functions
    print(f"{len(lines)} lines, {len(functions)} functions for a dtype and shape of launch, all of them run")
    assert not [f"{path.name}:{number}" for (path, number), count in lines.items() if count == 0]
    assert not [function for function, count in functions.items() if count == 0]
