"""How often lines and functions of C++ have run, by what programs built with --coverage have left in their folders.

``python tests/line_counts.py build csrc/bindings`` prints a line for each source: how many lines have run, and which
have not. See `make coverage`.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path


def line_counts(folder: Path, sources: Path) -> tuple[Counter[tuple[Path, int]], Counter[str]]:
    """The counts of lines and of functions, by their demangled names, in sources under a folder."""
    lines: Counter[tuple[Path, int]] = Counter()
    functions: Counter[str] = Counter()
    for counts in folder.rglob("*.gcda"):
        report = subprocess.run(
            [os.environ.get("GCOV", "gcov"), "--json-format", "--stdout", "--demangled-names", counts],
            check=True,
            capture_output=True,
            text=True,
        )
        for file in json.loads(report.stdout)["files"]:
            path = Path(file["file"])
            if sources not in path.parents:
                continue
            for line in file["lines"]:
                lines[path, line["line_number"]] += line["count"]
            for function in file["functions"]:
                functions[function["demangled_name"]] += function["execution_count"]
    return lines, functions


def main(folder: Path, sources: Path) -> None:
    """Prints the table."""
    lines, _ = line_counts(folder, sources)
    if not lines:
        return print(f"nothing of {sources.name} that was built with --coverage has run")
    for path in sorted({path for path, _ in lines}):
        numbers = sorted(number for other, number in lines if other == path)
        missed = [str(number) for number in numbers if not lines[path, number]]
        print(f"{path.name:28} {len(numbers) - len(missed):5} of {len(numbers):5} lines  {' '.join(missed)}")
    print(f"{'all of them':28} {sum(count > 0 for count in lines.values()):5} of {len(lines):5} lines")


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:]))
