"""The compiled extension: which code uses which instructions, and what it asks of the dynamic linker.

Each kernel source is compiled once per instruction set. Were an inline function of a header everyone uses, such as
std::min, not inlined there, each object would hold a copy under one name, the linker would keep any of them, and a
machine without AVX-512 would one day run AVX-512.
"""

import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = importlib.util.find_spec("normext._C").origin
ISAS = ["baseline", "avx2", "avx512", "avx512_bf16"]  # in the order of csrc/cpu/isa.h

x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="one instruction set on this processor")


def run(tool: str, *arguments: str) -> list[str]:
    """The lines a tool of binutils prints."""
    if not shutil.which(tool):
        pytest.skip(f"{tool} not found: install binutils")
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout.splitlines()


def isa_of(symbol: str) -> str | None:
    """The instruction set a mangled name belongs to: by its namespace, or as run_on's argument (csrc/cpu/isa.h)."""
    if match := re.search(r"7normext3cpu(?:\d+)(baseline|avx2|avx512_bf16|avx512)", symbol):
        return match[1]
    if match := re.search(r"7normext3cpu6run_onILNS0_3IsaE(\d)E", symbol):
        return ISAS[int(match[1])]
    return None


@pytest.fixture(scope="module")
def disassembly() -> dict[str, list[str]]:
    """The instructions of every function of the module."""
    functions, current = defaultdict(list), ""
    for line in run("objdump", "-d", "--no-show-raw-insn", MODULE):
        if heading := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            current = heading[1]
        elif instruction := re.match(r" *[0-9a-f]+:\t(.+)", line):
            functions[current].append(instruction[1])
    return functions


def users(disassembly: dict[str, list[str]], isas: list[str | None], pattern: str) -> dict[str, str]:
    """Functions of those instruction sets (None: of no one's) and their first instruction that matches."""
    result = {}
    for name, instructions in disassembly.items():
        if isa_of(name) in isas and (hit := next((i for i in instructions if re.search(pattern, i)), None)):
            result[name] = hit
    return result


@x86
def test_only_the_kernels_of_a_set_use_its_instructions(disassembly: dict[str, list[str]]) -> None:
    """Every AVX instruction begins with a v, on the short registers too; no other one of user space does."""
    assert not users(disassembly, [None, "baseline"], r"^v")
    assert not users(disassembly, ["avx2"], r"%zmm|%[xy]mm(1[6-9]|[23]\d)|%k[0-7]")
    assert not users(disassembly, ["avx512"], r"^v\w+bf16")


@x86
def test_the_kernels_of_a_set_use_its_registers(disassembly: dict[str, list[str]]) -> None:
    assert users(disassembly, ["baseline"], "%xmm")
    assert users(disassembly, ["avx2"], "%ymm")
    assert users(disassembly, ["avx512"], "%zmm")
    assert users(disassembly, ["avx512_bf16"], r"^v\w+bf16")


@pytest.fixture(scope="module")
def objects() -> dict[str, list[Path]]:
    """The object files of each instruction set, from the newest build folder that has them."""
    builds = defaultdict(list)
    for path in ROOT.glob("build/**/cpu_*.dir/**/*.o"):
        builds[next(parent for parent in path.parents if parent.name == "CMakeFiles").parent].append(path)
    plain = {
        build: paths
        for build, paths in builds.items()
        if not re.search(r"^NORMEXT_SANITIZE:\w+=.", (build / "CMakeCache.txt").read_text(), re.MULTILINE)
    }
    if not plain:
        pytest.skip("the extension was not built in this tree's build folder")
    newest = max(plain.values(), key=lambda paths: max(path.stat().st_mtime for path in paths))
    return {isa: [path for path in newest if f"cpu_{isa}.dir" in path.parts] for isa in ISAS}


@x86
@pytest.mark.parametrize("isa", ISAS[1:])
def test_objects_of_a_set_share_nothing(isa: str, objects: dict[str, list[Path]]) -> None:
    assert objects[isa]
    for path in objects[isa]:
        defined = [line.split()[-2:] for line in run("nm", "--defined-only", str(path))]
        code_and_data = [name for kind, name in defined if kind.isupper() or kind == "u"]
        shared = [name for name in code_and_data if isa_of(name) != isa and not name.startswith("DW.ref.")]
        assert not shared, f"{path.name} of {isa} defines what others may define too"


@x86
@pytest.mark.parametrize("isa", ISAS[1:])
def test_objects_of_a_set_run_nothing_at_load_time(isa: str, objects: dict[str, list[Path]]) -> None:
    assert objects[isa]
    for path in objects[isa]:
        assert not [line for line in run("readelf", "-SW", str(path)) if re.search(r"\.(init_array|ctors)", line)]


def test_the_dynamic_section_names_no_place() -> None:
    """Libraries go by name, and torch has loaded its own before: no path of the machine that built the module."""
    dynamic = run("readelf", "-dW", MODULE)
    assert not [line for line in dynamic if re.search(r"\((RPATH|RUNPATH)\).*\[(?!\$ORIGIN)", line)]
    assert not [line for line in dynamic if re.search(r"\(NEEDED\).*(/|omp)", line)]


def test_openmp_is_whoever_loaded_it_before() -> None:
    undefined = [line.split()[-1] for line in run("nm", "-D", "--undefined-only", MODULE)]
    assert "GOMP_parallel" in undefined


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_one_openmp_runtime_in_the_process() -> None:
    script = "import normext; print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    runtimes = set(re.findall(r"/\S*/lib(?:g|i)?omp\d?[-.]\S*", maps))
    assert len(runtimes) == 1, runtimes
