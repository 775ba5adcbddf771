"""How the programs of this folder are built, and what else is run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# cmake and ninja may stand beside this Python without being on the path.
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Both of its outputs are one."""
    return subprocess.run(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def skip_without(*tools: str) -> None:
    """Skips unless all of them are there."""
    for tool in tools:
        if not shutil.which(tool, path=ENVIRONMENT["PATH"]):
            pytest.skip(f"{tool} not found")


def run_checks(folder: Path, options: list[str], *command: str | Path) -> None:
    """Builds cpu_checks in a folder, and runs a command with its path in the place of "checks"; some must have run."""
    for words in (
        ["cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, *options],
        ["cmake", "--build", folder, "--target", "cpu_checks"],
        [folder / "cpu_checks" if word == "checks" else word for word in command],
    ):
        result = run(*words)
        assert result.returncode == 0, f"{words[0]} failed:\n{result.stdout[-8000:]}"
    assert " 0 runs" not in result.stdout
