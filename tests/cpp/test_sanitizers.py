"""The kernels under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer: see kernels.cpp.

That they find what they are for was tried with planted faults, one at a time, each found in the first case that runs
into it:

- for_vectors() in passes.h takes one element too many in its last step: where a masked vector instruction does it,
  AddressSanitizer does not see it and the page behind each array does;
- normalize() in normalized_rows.h reads x[-1]: poisoned memory;
- by_rows() in row_norm_backward.h gives every thread the totals of part 0: a data race.
"""

import os
from pathlib import Path

import pytest
from programs import ROOT, run, run_checks, skip_without

from normext._C import supported_isas


def skip_without_means(sanitizers: str, folder: Path) -> None:
    """Skips unless the compiler can build, and this machine run, an empty program with the sanitizers."""
    skip_without("cmake", "ninja")
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
    skip_without_means(sanitizers, tmp_path)
    folder = ROOT / "build" / f"sanitize-{sanitizers.replace(',', '-')}-{isa}"
    run_checks(folder, [f"-DNORMEXT_SANITIZE={sanitizers}", f"-DNORMEXT_CHECKED_ISA={isa}"], "checks", f"{isa}, ")
