"""A module that works is put where it is imported from; one that does not is not."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from building import ROOT, fail


def why_not(module: Path) -> str:
    """What is wrong with a module, tried in a fresh process, as half a sentence; empty if nothing is."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "building" / "check.py"), str(module)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode < 0:
        return f"it crashes ({signal.Signals(-result.returncode).name})"
    return result.stderr.strip().rpartition("\n")[2] if result.returncode else ""


def install(module: Path, places: Iterable[Path]) -> None:
    """Puts a module where it is imported from, if it works; if not, no module is there."""
    if problem := why_not(module):
        for place in places:
            place.unlink(missing_ok=True)
        fail(f"the extension was built but does not work, and is not installed: {problem}.")
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(module, beside := place.with_name(f"{place.name}.new"))
        beside.replace(place)  # not written over: a process may be running it
