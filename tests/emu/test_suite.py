"""The whole test suite once more, with the CUDA kernels, emulated, as its backend: see tests/conftest.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toolkit import PACKAGES, cuda_include

from building.toolchain import build_folder

ROOT = Path(__file__).resolve().parents[2]
FOLDER = build_folder(torch.__version__)  # setup.py's

# What is about other builds of the kernels, or about no kernels at all: compilers, exporters and tracers see operators,
# which are the same ones here.
FILES = (
    "benchmarks", "build", "link", "compile", "convert", "dtensor", "enable", "enable_tools", "example_scripts",
    "integrations", "onnx", "overrides", "readme", "tracing",
)  # fmt: skip
AROUND = "not test_transforms and not test_nestings"  # of test_autograd.py: formulas around any kernels
ELSEWHERE = ["tests/cpp", "tests/emu", "tests/static", *(f"tests/test_{name}.py" for name in FILES)]


@pytest.mark.skipif(not cuda_include(), reason=f"no CUDA headers found: pip install {PACKAGES}")
def test_suite_on_emulated_kernels() -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    configure = ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(FOLDER), f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (
        [*configure, "-DCMAKE_BUILD_TYPE=Release", f"-DCUDAToolkit_INCLUDE_DIR={cuda_include()}"],
        ["cmake", "--build", str(FOLDER), "--target", "emulated"],
    ):
        built = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert built.returncode == 0, built.stdout[-8000:] + built.stderr[-8000:]
    (module,) = (FOLDER / "emulated").glob("_C*.so")
    ignore = [f"--ignore={name}" for name in ELSEWHERE]
    suite = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ignore, "-k", AROUND, "tests"],
        cwd=ROOT,
        env={**environment, "NORMEXT_EMULATED": str(module)},
        capture_output=True,
        text=True,
    )
    assert suite.returncode == 0, suite.stdout[-8000:]
    assert (
        "[emulated"
        in subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--collect-only", "tests/test_row_norms.py"],
            cwd=ROOT,
            env={**environment, "NORMEXT_EMULATED": str(module)},
            capture_output=True,
            text=True,
        ).stdout
    )
    print(suite.stdout.splitlines()[-1])
