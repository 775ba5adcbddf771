"""The arguments of ``python -m benchmarks``."""

import argparse
import os
import re
import sys
from pathlib import Path

# glibc hands large blocks back to the system when they are freed, and the kernel then zeroes and maps every page of
# the next output anew: that costs several times what a norm does, and hits whoever allocates, not whoever is slow.
# With these, freed memory stays in the process. glibc reads them once, before main(), so they must be there at start.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 36),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
DTYPES = ["float32", "bfloat16"]


def keep_freed_memory() -> None:
    """Starts this very command again, once, with the allocator's settings in its environment."""
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | ALLOCATOR)


def parse_arguments() -> argparse.Namespace:
    """What to measure, where, and where to leave the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Times normext beside its peers.")
    parser.add_argument("--full", action="store_true", help="every case; without it a selection")
    parser.add_argument("--filter", metavar="REGEX", type=re.compile, help="only cases whose name matches: --list")
    parser.add_argument("--list", action="store_true", help="print the names of the cases, and stop")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], nargs="+", default=DTYPES)
    parser.add_argument("--threads", type=int, help="threads of a CPU run (default: torch's)")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path(__file__).parent / "results",
        help="results go to DIR/<machine>/ (default: benchmarks/results)",
    )  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    keep_freed_memory()
    from benchmarks.run import run  # here, not above: torch takes a second to import, and would be imported twice

    run(arguments)
