"""What is built: for which GPUs, and what people are told where it cannot be."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import normext  # noqa: F401  it registers the operators

ROOT = Path(__file__).resolve().parent.parent
setup = runpy.run_path(str(ROOT / "setup.py"))
choose_architectures: Callable[[str, list[str]], str] = setup["choose_architectures"]
why_not_cuda: Callable[[str | None, str], str | None] = setup["why_not_cuda"]

NVCC_13 = ["75", "80", "86", "87", "88", "89", "90", "100", "103", "110", "120", "121"]  # nvcc --list-gpu-code


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("9.0", "90"),
        ("8.0;9.0+PTX", "80,90+PTX"),
        ("8.0 8.6, 12.0", "80,86,120"),
        ("9.0a;10.0f", "90a,100f"),
        ("", "75,80,86,89,90,100,120+PTX"),
    ],
)
def test_architectures_are_written_as_for_torch(wanted: str, chosen: str) -> None:
    assert choose_architectures(wanted, NVCC_13) == chosen


def test_an_older_compiler_builds_for_the_architectures_it_knows() -> None:
    assert choose_architectures("", ["70", "75", "80", "86", "87", "89", "90"]) == "75,80,86,89,90+PTX"


@pytest.mark.parametrize("wanted", ["7.0", "90", "Hopper", "9.0+SASS"])
def test_unknown_architectures_are_named(wanted: str) -> None:
    with pytest.raises(SystemExit, match=wanted.replace("+", r"\+")):
        choose_architectures(wanted, NVCC_13)


@pytest.fixture
def nvcc(tmp_path: Path) -> str:
    """A compiler that says it is CUDA 13.0."""
    program = tmp_path / "nvcc"
    program.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("cuda", "problem"), [("13.0", None), ("13.2", None), ("12.8", "CUDA 12.8.*CUDA 13.0"), (None, "CPU build")]
)
def test_compiler_and_torch_have_one_major_version(cuda: str | None, problem: str | None, nvcc: str) -> None:
    answer = why_not_cuda(cuda, nvcc)
    assert answer is None if problem is None else re.search(problem, answer)


def test_forced_cuda_fails_in_one_sentence_without_a_compiler() -> None:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": tools, "FORCE_CUDA": "1", "FORCE_CPU": "0", "CUDA_HOME": "/nonexistent"}
    command = [sys.executable, "setup.py", "build_ext"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    (sentence,) = (line for line in result.stderr.splitlines() if line.startswith("normext: "))
    assert "FORCE_CUDA=1" in sentence
    assert ("nvcc was not found" if torch.version.cuda else "CPU build") in sentence


@pytest.mark.parametrize(
    "operator",
    [
        "layer_norm_forward",
        "layer_norm_backward",
        "batch_norm_forward",
        "batch_norm_backward",
        "batch_norm_update_stats",
    ],
)
@pytest.mark.parametrize("key", ["CPU", "CUDA", "Meta"])
def test_operators_have_a_kernel_for_every_device(operator: str, key: str) -> None:
    """A build without CUDA too: its kernel says that, and how to rebuild."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"normext::{operator}", key)
