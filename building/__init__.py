"""What setup.py knows: the tools, the GPUs to build for, and whether what was built works. No part of the package."""

import subprocess
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent


def fail(message: str) -> NoReturn:
    """Ends the build with one sentence, not a traceback."""
    raise SystemExit(f"\nnormext: {message}\n")


def output_of(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True).stdout
