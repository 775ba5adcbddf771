"""CUDA's kernels as nvcc compiles them: cubins, what ptxas says of them, and their instructions. No GPU is needed.

Cubins are kept in build/cubins until a source, nvcc or its arguments are others.
"""

import fcntl
import hashlib
import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"
CUBINS = ROOT / "build" / "cubins"
ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
PROCESSES = 2  # an nvcc each
# As CMakeLists.txt's, in a release build, but for the report of ptxas.
FLAGS = ["-cubin", "-std=c++20", "-O3", "-DNDEBUG", "-Xptxas=-v", f"-I{SOURCES}"]

# "@!P0 STG.E.128 desc[UR4][R2.64], R4", or the label ".L_x_7" that stands before one.
LINE = r"^ +/\*[0-9a-f]+\*/ +(?P<instruction>.+?) *;|^(?P<label>\.L_x_\d+):"
PREDICATE = r"(?:@!?U?P\w+ +)?"
VECTOR_LOAD = PREDICATE + r"LDG\S*\.128\S* R(\d+)"
JUMP = r"(?P<predicate>@\S+ +)?BRA(?P<condition>.*) `\((?P<label>\.L_x_\d+)\)"

DTYPES = {"__half": "half", "__nv_bfloat16": "bf16"}


@dataclass
class Kernel:
    """One instantiation on one architecture."""

    name: str  # row_norm_forward_kernel
    arguments: list[str]  # bf16, Centered, 32, 4, false
    registers: int = 0
    shared: int = 0  # bytes; without what a launch adds
    stack: int = 0  # bytes of local memory
    spills: int = 0  # bytes
    instructions: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # and the instructions that they stand before

    @property
    def key(self) -> str:
        return f"{self.name}<{', '.join(self.arguments)}>"

    def count(self, pattern: str) -> int:
        """Instructions that begin so, whether predicated or not."""
        return sum(bool(re.match(PREDICATE + pattern, instruction)) for instruction in self.instructions)

    def loads_on_the_way(self) -> int:
        """The most vectors that are asked for, on one way through the kernel, before the first of them is needed."""
        loads = [re.match(VECTOR_LOAD, instruction) for instruction in self.instructions]
        registers = [set(re.findall(r"\bR\d+", instruction)) for instruction in self.instructions]
        jumps = [re.match(JUMP, instruction) for instruction in self.instructions]
        most = 0
        for start, load in enumerate(loads):
            if not load:
                continue
            wanted = {f"R{int(load[1]) + word}" for word in range(4)}
            reached = {start + 1: 1}  # instructions that wait to be looked at, and how many loads are before them
            for at in range(start + 1, len(loads)):
                if not reached:
                    break
                count = reached.pop(at, 0)
                if not count or wanted & registers[at]:
                    continue
                count += bool(loads[at])
                most = max(most, count)
                jump = jumps[at]
                following = [self.labels[jump["label"]]] if jump else []
                if not jump or jump["predicate"] or jump["condition"]:
                    following.append(at + 1)
                for after in following:
                    if after > at:  # forwards only: once through a loop
                        reached[after] = max(reached.get(after, 0), count)
        return most


# -------------------------------------------------------------------------------------------------- tools
def find_nvcc() -> str:
    """The CUDA compiler that setup.py would take."""
    found: str = runpy.run_path(str(ROOT / "setup.py"))["find_nvcc"]()
    if not found:
        pytest.skip("nvcc not found: install the CUDA toolkit, or set CUDA_HOME")
    return found


def find_disassembler() -> str:
    """A nvdisasm: of the package, which installs it without the right to run, of the toolkit, or of the path."""
    try:
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    packaged = next((Path(file.locate()) for file in files if file.stem == "nvdisasm"), None)
    if packaged and packaged.is_file():
        if not os.access(packaged, os.X_OK):
            packaged.chmod(packaged.stat().st_mode | 0o111)
        return str(packaged)
    found = shutil.which("nvdisasm", path=Path(find_nvcc()).resolve().parent) or shutil.which("nvdisasm")
    if not found:
        pytest.skip("nvdisasm not found: pip install nvidia-cuda-nvdisasm")
    return found


def run(*command: str | Path, given: str | None = None) -> str:
    """What a command prints, errors included."""
    result = subprocess.run(command, input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, f"{command[0]} failed:\n{result.stdout[-8000:]}"
    return result.stdout


@cache
def nvcc_version() -> str:
    """Such as 13.0.88."""
    return re.search(r"V([\d.]+)", run(find_nvcc(), "--version"))[1]


# -------------------------------------------------------------------------------------------------- cubins
def host_compiler() -> list[str]:
    """As the build has it."""
    return ["-ccbin", os.environ["CXX"]] if os.environ.get("CXX") else []


def kernel_sources() -> list[Path]:
    return sorted(SOURCES.glob("cuda/*/*.cu"))


def state_of_sources() -> str:
    """Tells whether a cubin is of these sources, this nvcc and these arguments."""
    state = hashlib.sha256(repr((nvcc_version(), FLAGS)).encode())
    for path in sorted([*SOURCES.glob("cuda/**/*"), *SOURCES.glob("ops/*")]):
        if path.is_file():
            state.update(path.name.encode() + path.read_bytes())
    return state.hexdigest()


def cubin_of(source: Path, architecture: str) -> Path:
    return CUBINS / architecture / f"{source.stem}.cubin"


def compile_cubin(source: Path, architecture: str, state: str) -> None:
    """Leaves a cubin, ptxas' report, and last the state they are of."""
    cubin = cubin_of(source, architecture)
    stamp = cubin.with_suffix(".state")
    if stamp.exists() and stamp.read_text() == state:
        return
    cubin.parent.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    report = run(find_nvcc(), *host_compiler(), *FLAGS, f"-arch={architecture}", source, "-o", cubin)
    cubin.with_suffix(".txt").write_text(report)
    stamp.write_text(state)


@cache
def compile_all(architecture: str) -> None:
    """All sources at once: the first test waits, the others find what they need."""
    state = state_of_sources()
    CUBINS.mkdir(parents=True, exist_ok=True)
    with (CUBINS / "lock").open("w") as lock, ThreadPoolExecutor(PROCESSES) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes of the same test run want the same
        for job in [pool.submit(compile_cubin, source, architecture, state) for source in kernel_sources()]:
            job.result()


# -------------------------------------------------------------------------------------------------- reading them
def split_arguments(text: str) -> list[str]:
    """Template arguments, those in inner brackets left together."""
    return [argument.strip() for argument in re.findall(r"(?:[^,<]|<[^<>]*>)+", text)]


def readable(mangled: list[str]) -> dict[str, tuple[str, list[str]]]:
    """Kernels' names and template arguments, by mangled name. One that is no template computes nothing."""
    if not shutil.which("c++filt"):
        pytest.skip("c++filt not found: install binutils")
    names = {}
    for symbol, text in zip(mangled, run("c++filt", given="\n".join(mangled)).splitlines(), strict=True):
        text = re.sub(r"normext::(cuda::)?|\(int\)", "", text)
        text = text.replace("(bool)0", "false").replace("(bool)1", "true")
        for long, short in DTYPES.items():
            text = text.replace(long, short)
        if match := re.fullmatch(r"void (\w+)<(.*)>\(.*\)", re.sub(r" +>", ">", text)):
            names[symbol] = match[1], split_arguments(match[2])
    return names


def resources(report: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Mangled names and what ptxas says of each kernel."""
    for part in report.split("Compiling entry function '")[1:]:
        # Of functions that a kernel calls there are lines too, before the kernel's own.
        numbers = {
            "registers": re.search(r"Used (\d+) registers", part),
            "shared": re.search(r"(\d+) bytes smem", part),
            "stack": re.search(r"(\d+) bytes stack frame", part),
        }
        found = {name: int(match[1]) if match else 0 for name, match in numbers.items()}
        found["spills"] = sum(int(bytes_) for bytes_ in re.findall(r"(\d+) bytes spill", part))
        yield part.split("'")[0], found


def code(disassembly: str) -> Iterator[tuple[str, list[str], dict[str, int]]]:
    """Mangled names, instructions and labels of each kernel."""
    for part in re.split(r"^\t\.section\t\.text\.", disassembly, flags=re.MULTILINE)[1:]:
        instructions: list[str] = []
        labels: dict[str, int] = {}
        for line in re.finditer(LINE, part.split("\n\t.section\t")[0], re.MULTILINE):
            if line["label"]:
                labels[line["label"]] = len(instructions)
            else:
                instructions.append(line["instruction"])
        yield re.match(r"[\w$]+", part)[0], instructions, labels


@cache
def kernels(architecture: str) -> dict[str, Kernel]:
    """All kernels of an architecture, sorted, by their readable names."""
    if architecture not in run(find_nvcc(), "--list-gpu-code").split():
        pytest.skip(f"nvcc {nvcc_version()} does not know {architecture}")
    disassembler = find_disassembler()
    compile_all(architecture)
    found = {}
    for cubin in [cubin_of(source, architecture) for source in kernel_sources()]:
        of_file = dict(resources(cubin.with_suffix(".txt").read_text()))
        code_of = {symbol: (lines, labels) for symbol, lines, labels in code(run(disassembler, "-c", cubin))}
        assert of_file.keys() == code_of.keys()
        for symbol, (name, arguments) in readable(list(of_file)).items():
            instructions, labels = code_of[symbol]
            kernel = Kernel(name, arguments, **of_file[symbol], instructions=instructions, labels=labels)
            found[kernel.key] = kernel  # a template that two sources instantiate is the same code in both
    return dict(sorted(found.items()))
