"""The emulator finds planted bugs (planted_bugs.h), takes the same kernels without them, and does what CUDA does.

What breaks a rule is an error or a sanitizer's report, in every schedule. A race shows as wrong values, or as an access
to what is on its way, and need not do so in each schedule. A line of a kernel that ends in a comment with a bug's name
must be named in what finds the bug.
"""

import os
import platform
import re
import subprocess
from pathlib import Path

import pytest
from toolkit import PACKAGES, cuda_include

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUTPUT = ROOT / "build" / "emu"
COMPILER = os.environ.get("CXX", "c++")

SCHEDULES = ["forward", "backward", *(str(seed) for seed in range(1, 9))]

RACE = "^wrong values$"
TOUCHED = "AddressSanitizer: use-after-poison"  # what is on its way
GONE = "error: .* returns (while a transfer to it is on its way|without having (waited for|expected) what has come)"
OVERRUN = "AddressSanitizer: heap-buffer-overflow"

# What finds each bug.
FOUND_BY = {
    "missing_barrier": RACE,
    "missing_syncwarp": RACE,
    "buffer_reused": RACE,
    "forgotten_parity": RACE,
    "dependent_blocks": RACE,
    "missing_cluster_sync": RACE,
    "early_exit": "error: .* waits for lanes of its mask that have returned",
    "rows_apart": "error: .* waits for lanes of its mask that have returned",
    "exit_before_barrier": "error: .* has returned and will never reach the barrier",
    "divergent_barrier": "error: .* divergent barrier",
    "barrier_against_shuffle": "error: .* deadlock",
    "different_collectives": "error: .* different collectives",
    "wrong_mask": "error: .* is not in its own mask",
    "shuffle_out_of_mask": "error: .* shuffles from lane .* is not in the mask",
    "exited_peer": "error: .* reads shared memory of block .* exited",
    "missed_cluster_sync": "error: .* has returned and will never reach the barrier",
    "cluster_deadlock": "error: .* deadlock",
    "divergent_cluster_sync": "error: .* divergent barrier",
    "missing_wait": "error: .* reads shared memory of block .* before waiting for it",
    "never_waited": "error: .* returns without having waited",
    "never_arrived": "error: .* waits without having arrived",
    "arrived_twice": "error: .* arrives again without having waited",
    "block_too_large": r"error: .* a block of \(33,32,1\) threads",
    "empty_grid": r"error: .* a grid of \(0,1,1\) blocks",
    "ragged_grid": r"error: .* clusters of 4 blocks: a grid of \(10,1,1\) is not a multiple",
    "cluster_too_large": "error: .* clusters of 16 blocks: 1 to 8 are possible",
    "dynamic_shared_memory": "error: .* too much shared memory",
    "static_shared_memory": "error: .* too much shared memory",
    "static_and_dynamic": "error: .* too much shared memory",
    "static_overrun": OVERRUN,
    "dynamic_overrun": OVERRUN,
    "global_overrun": OVERRUN,
    "exited_peer_read": "AddressSanitizer: heap-use-after-free",
    "misaligned_vector": "runtime error: .* misaligned address",  # UndefinedBehaviorSanitizer
    "parity_forgotten": "error: .* waits for a phase that it has waited for before",
    "parity_of_nothing": TOUCHED,
    "released_early": TOUCHED,
    "missing_expect": "error: .* copies more bytes than it has told the barrier to expect",
    "expects_too_much": "error: .* deadlock",
    "missing_fence": "error: .* copies to a barrier without a fence behind its init",
    "missing_proxy_fence": "error: .* copies to where threads have written, without a fence",
    "misaligned_copy": "error: .* copies what is no multiple of 16 bytes",
    "bulk_overrun": OVERRUN,
    "bulk_source_overrun": OVERRUN,
    "exchange_reused": TOUCHED,
    "missing_peer_init": "error: .* uses a barrier of block .* before its init",
    "unexpected_send": GONE,
    "peer_gone": GONE,
}
# What breaks a rule in some schedules only: the kernels that do so are right in the others.
IN_SOME_SCHEDULES = {RACE, TOUCHED, FOUND_BY["missing_peer_init"]}


SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")


def skip_without_means() -> None:
    """Skips unless an empty program with the sanitizers can be built and run, and the emulator compiled."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the emulator switches stacks in x86-64 assembly")
    if cuda_include() is None:
        pytest.skip(f"no CUDA headers: install a toolkit, or pip install {PACKAGES}")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    source, program = OUTPUT / "empty.cpp", OUTPUT / "empty"
    source.write_text("int main() {}\n")
    build = run(COMPILER, *SANITIZERS, source, "-o", program)
    if build.returncode != 0 or run(program).returncode != 0:
        pytest.skip(f"no program with {SANITIZERS[0]} builds and starts here: {build.stdout.strip()[-300:]}")


def compile_program(name: str, sources: list[Path]) -> Path:
    """Compiles a program with the sanitizers, unless it is newer than all it is made from."""
    skip_without_means()
    program = OUTPUT / name
    made_from = [Path(__file__), ROOT / "csrc/cuda/elements/platform.cuh", *HERE.glob("*.h"), *sources]
    if program.exists() and all(program.stat().st_mtime > source.stat().st_mtime for source in made_from):
        return program
    flags = ["-std=c++20", "-O1", "-g", "-fno-strict-aliasing", "-pthread", *SANITIZERS]
    includes = ["-I", HERE, "-I", ROOT / "csrc", "-isystem", cuda_include()]
    result = run(COMPILER, *flags, *includes, *sources, "-o", program)
    assert result.returncode == 0, result.stdout[-8000:]
    return program


@pytest.fixture(scope="module")
def planted_bugs() -> Path:
    return compile_program("planted_bugs", [HERE / "planted_bugs.cpp", *sorted(HERE.glob("bugs_of_*.cpp"))])


def lines_to_name(bug: str) -> list[str]:
    return [
        f"{source.name}:{number}"
        for source in HERE.glob("bugs_of_*.cpp")
        for number, line in enumerate(source.read_text().splitlines(), 1)
        if line.endswith(f"  // {bug}")
    ]


@pytest.mark.parametrize("bug", FOUND_BY)
def test_fixed(planted_bugs: Path, bug: str) -> None:
    for schedule in SCHEDULES:
        assert run(planted_bugs, bug, "fixed", schedule).stdout == "right\n", schedule


@pytest.mark.parametrize("bug", FOUND_BY)
def test_buggy(planted_bugs: Path, bug: str) -> None:
    outputs = {schedule: run(planted_bugs, bug, "buggy", schedule).stdout for schedule in SCHEDULES}
    found_by, lines = FOUND_BY[bug], lines_to_name(bug)
    found = [bool(re.search(found_by, text)) and all(line in text for line in lines) for text in outputs.values()]
    assert any(found) if found_by in IN_SOME_SCHEDULES else all(found), outputs


def test_every_bug_is_expected() -> None:
    sources = "".join(source.read_text() for source in HERE.glob("bugs_of_*.cpp"))
    assert set(re.findall(r'^ +\{"(\w+)", ', sources, re.MULTILINE)) == set(FOUND_BY)


def test_semantics() -> None:
    result = run(compile_program("semantics", [HERE / "semantics.cpp"]))
    assert result.returncode == 0, result.stdout[-8000:]
