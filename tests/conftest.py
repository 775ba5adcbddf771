"""What the suite runs on: every implementation of the kernels for their own tests, every device for the rest.

With NORMEXT_EMULATED=<path of build/<...>/emulated/_C*.so> in the environment, it runs on that module instead of the
installed one: the same bindings, with the CUDA kernels on the CPU (cmake --build build/<...> --target emulated).
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

EMULATED = os.environ.get("NORMEXT_EMULATED")
if EMULATED:  # before anything imports normext, which takes the module that is there
    spec = importlib.util.spec_from_file_location("normext._C", EMULATED)
    sys.modules["normext._C"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["normext._C"])

from normext import _C  # noqa: E402


@dataclass(frozen=True)
class Backend:
    """One implementation of the kernels: tensors on ``device`` reach it while ``isa`` (if it is the CPU) is forced."""

    name: str
    device: str
    isa: str | None = None


# Every implementation there is here. To add one: add it, and say in `backend` below how it is switched on.
BACKENDS = [Backend(f"cpu-{isa}", "cpu", isa) for isa in _C.supported_isas()]
if torch.cuda.is_available() and _C.build_info["cuda_architectures"]:
    BACKENDS.append(Backend("cuda", "cuda"))
if EMULATED:
    BACKENDS = [Backend("emulated", "cpu")]

DEVICES = sorted({backend.device for backend in BACKENDS})


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device to put tensors on, with one implementation of the kernels switched on: for tests of the kernels."""
    isa = _C.get_isa()
    if request.param.isa:
        _C.set_isa(request.param.isa)
    yield request.param.device
    _C.set_isa(isa)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """A device, with the kernels it uses by default: for tests of what is built around the kernels."""
    return request.param


@pytest.fixture(params=[1, 4], ids=lambda n: f"{n}-threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One thread, and more than most machines of a CI have: the work is split all the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers, alone or in the suite."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests run only if -m asks for them."""
    if "slow" in config.getoption("markexpr"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))
