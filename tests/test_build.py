"""What is built: for which GPUs, and what people are told where it cannot be."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from building import ROOT, output_of
from building.cuda import choose_architectures, why_not_cuda
from building.toolchain import build_folder, find_tool
from normext import _C

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


@pytest.mark.parametrize(
    ("gpus", "chosen"),
    [
        ([(9, 0)], "90+PTX"),
        ([(9, 0)] * 8, "90+PTX"),
        ([(12, 0), (8, 6), (10, 3)], "86,103,120+PTX"),
        ([(8, 7)], "87+PTX"),
        ([(12, 2)], "121+PTX"),  # newer than this nvcc: what it knows of its generation
        ([(13, 0)], "121+PTX"),  # and what the newest becomes when it is loaded
        ([(6, 1), (8, 0)], "80+PTX"),  # too old for normext
        ([(6, 1)], "75,80,86,89,90,100,120+PTX"),
    ],
)
def test_the_gpus_there_are_are_built_for(gpus: list[tuple[int, int]], chosen: str) -> None:
    assert choose_architectures("", NVCC_13, gpus) == chosen
    assert choose_architectures("8.0", NVCC_13, gpus) == "80"


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


def last_sentence(**environment: str) -> str:
    """What a build that fails says in the end."""
    command = [sys.executable, "setup.py", "build_ext"]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 1, result.stdout + result.stderr
    *_, sentence = result.stderr.strip().splitlines()
    assert sentence.startswith("normext: ")
    return sentence


def test_forced_cuda_fails_in_one_sentence_without_a_compiler() -> None:
    sentence = last_sentence(FORCE_CUDA="1", FORCE_CPU="0", CUDA_HOME="/nonexistent")
    assert "FORCE_CUDA=1" in sentence
    assert ("nvcc was not found" if torch.version.cuda else "CPU build") in sentence


@pytest.mark.parametrize(
    ("macros", "name"),
    [
        ("-D__clang__=1 -D__clang_major__=14 -D__clang_minor__=0 -D__clang_patchlevel__=6", "Clang 14.0.6"),
        ("-U__GNUC__ -D__GNUC__=11", "GNU 11"),
    ],
)
def test_other_compilers_are_refused_in_one_sentence(
    macros: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that says it is another."""
    program = tmp_path / "compiler"
    program.write_text(f'#!/bin/sh\nexec g++ {macros} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    folder = build_folder(torch.__version__)
    try:
        sentence = last_sentence(FORCE_CPU="1")
    finally:
        shutil.rmtree(folder)
    assert re.search(rf"needs g\+\+ 12 or later, and {program} is {name}.*: set CXX to a g\+\+", sentence)


def test_a_compiler_that_is_not_there_is_named() -> None:
    assert "no C++ compiler found (g++-of-nowhere)" in last_sentence(CXX="g++-of-nowhere -m64")


def test_an_old_cmake_is_told_which_is_needed_for_cuda(tmp_path: Path) -> None:
    cmake = shutil.which("cmake", path="/usr/local/bin:/usr/bin")
    found = re.search(r"version (3)\.(\d+)\.(\d+)", output_of(cmake, "--version")) if cmake else None
    if not cmake or not found or not (3, 24, 0) <= tuple(map(int, found.groups())) < (3, 25, 2):
        pytest.skip("the system has no cmake that is too old")
    command = [cmake, "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja", "-DNORMEXT_CUDA_ARCHITECTURES=90"]
    result = subprocess.run([*command, f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}"], capture_output=True, text=True)
    assert result.returncode == 1
    assert re.search(r"needs cmake 3\.25\.2 or later, and \S*cmake is 3\.2", " ".join(result.stderr.split()))


@pytest.mark.parametrize("name", ["cmake", "ninja"])
def test_the_environments_own_tools_come_before_the_paths(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip(name)
    (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Path(find_tool(name)).parent == Path(package.CMAKE_BIN_DIR if name == "cmake" else package.BIN_DIR)
    monkeypatch.setitem(sys.modules, name, None)  # not installed
    assert Path(find_tool(name)) == tmp_path / name
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=f"pip install {name}"):
        find_tool(name)


@pytest.mark.parametrize("variable", ["CXX", "CXXFLAGS", "LDFLAGS", "CUDA_HOME"])
def test_each_compiler_and_its_flags_have_a_folder(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build_folder("2.13.0")
    assert build_folder("2.13.0") == before
    (tmp_path / "bin").mkdir()
    for name in ("g++-of-mine", "bin/nvcc"):
        (tmp_path / name).touch(mode=0o755)
    values = {"CXX": f"{tmp_path}/g++-of-mine -m64", "CUDA_HOME": str(tmp_path)}
    monkeypatch.setenv(variable, values.get(variable, "-g0"))
    assert build_folder("2.13.0") != before
    assert variable != "CXX" or "-g++-of-mine-" in build_folder("2.13.0").name


@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="another test may build in the same folder")
@pytest.mark.skipif(Path(_C.__file__).parent != ROOT / "normext", reason="the tree has no build to repeat")
def test_the_readmes_lines_work_in_their_order(tmp_path: Path) -> None:
    """Started by the environment's Python alone, with none of its programs on the path; as much is built already."""
    block = re.search(r"^## Install$.*?```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    install, look = (shlex.split(line, comments=True)[1:] for line in block[1].splitlines()[1:])
    architectures = re.sub(r"(\d)([af]?(?:\+PTX)?)(?:,|$)", r".\1\2;", _C.build_info["cuda_architectures"])
    path = [place for place in os.environ["PATH"].split(os.pathsep) if place != str(Path(sys.executable).parent)]
    environment = os.environ | {
        "PATH": os.pathsep.join(path),
        "FORCE_CPU": "0" if architectures else "1",
        "TORCH_CUDA_ARCH_LIST": architectures.strip(";"),
    }

    def python(*arguments: str, cwd: Path = ROOT, **variables: str) -> str:
        command, env = [sys.executable, *arguments], environment | variables
        result = subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert result.returncode == 0, result.stdout
        return result.stdout

    before = Path(_C.__file__).stat().st_ino
    said = python("-m", "pip", *install, "-v", "--no-deps", "--target", str(tmp_path))
    assert re.search(r"normext: building in build/\S+, \d+ files at a time: what has changed\n", said)
    assert f"normext: torch {torch.__version__}, g++" in said
    assert Path(_C.__file__).stat().st_ino != before, "the tree, where the next line finds its package, has it too"
    assert f"built with {torch.__version__}" in python(*look)
    assert f"built with {torch.__version__}" in python(*look, cwd=tmp_path.parent, PYTHONPATH=str(tmp_path))
    assert list(tmp_path.glob("normext/_C*.so")) and not list(tmp_path.glob("building"))


@pytest.mark.parametrize(
    "operator",
    [
        "layer_norm_forward",
        "layer_norm_backward",
        "batch_norm_forward",
        "batch_norm_backward",
        "batch_norm_activation_backward",
        "batch_norm_moments",
        "batch_norm_gradient_map",
        "batch_norm_update_stats",
    ],
)
@pytest.mark.parametrize("key", ["CPU", "CUDA", "Meta"])
def test_operators_have_a_kernel_for_every_device(operator: str, key: str) -> None:
    """A build without CUDA too: its kernel says that, and how to rebuild."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"normext::{operator}", key)
