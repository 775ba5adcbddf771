"""libstdc++ is the process's, whatever the environment says; and a build that does not work is not installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from building import ROOT
from building.check import run_norm
from building.install import install, why_not
from building.toolchain import find_tool

STATIC = "-static-libstdc++"


def libstdcxx_folder(tmp_path: Path) -> str:
    """A folder that the linker looks into first and that has libstdc++.a alone: a missing development link."""
    archive = subprocess.run(["g++", "-print-file-name=libstdc++.a"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(archive):
        pytest.skip("this g++ has no libstdc++.a")
    (tmp_path / "libstdc++.a").symlink_to(archive)
    return f"-L{tmp_path}"


@pytest.fixture(scope="module", params=["CXXFLAGS", "LDFLAGS", "no link"])
def modules(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with tests/link's modules, built where libstdc++ would be linked statically."""
    folder = tmp_path_factory.mktemp("modules")
    link = libstdcxx_folder(tmp_path_factory.mktemp("lib"))
    flags = {"CXXFLAGS": "", "LDFLAGS": link} if request.param == "no link" else {request.param: STATIC}
    configure = ["-G", "Ninja", "-S", str(ROOT / "tests" / "link"), "-B", str(folder)]
    for command in ([*configure, f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}"], ["--build", str(folder)]):
        result = subprocess.run([find_tool("cmake"), *command], env=os.environ | flags, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder


def has_its_own_libstdcxx(module: Path) -> bool:
    script = f"from building.check import has_its_own_libstdcxx; print(has_its_own_libstdcxx({str(module)!r}))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    return result.stdout.strip() == "True"


def test_the_link_line_holds_and_the_check_sees_where_it_is_missing(modules: Path) -> None:
    assert not has_its_own_libstdcxx(modules / "libours.so")
    assert has_its_own_libstdcxx(modules / "libplain.so")


one = pytest.mark.parametrize("modules", ["CXXFLAGS"], indirect=True)


@one
def test_a_build_that_fails_the_check_is_not_installed(modules: Path, tmp_path: Path) -> None:
    place = tmp_path / "_C.so"
    place.write_text("an older one")
    with pytest.raises(SystemExit, match=r"is not installed: it has a libstdc\+\+ of its own inside"):
        install(modules / "libplain.so", [place])
    assert not place.exists()


@one
def test_a_module_that_crashes_is_said_to(modules: Path) -> None:
    assert why_not(modules / "libcrash.so") == "it crashes (SIGABRT)"


@pytest.mark.parametrize(
    ("factor", "message", "said"),
    [(2, "", "its layer_norm of 1, 2, 3, 4 is"), (1, "Given normalized_shape=[", "should end in")],
)
def test_wrong_values_and_messages_cut_short_are_seen(factor: float, message: str, said: str) -> None:
    def broken(x: torch.Tensor, shape: list[int]) -> torch.Tensor:
        if shape != list(x.shape[-1:]):
            raise RuntimeError(message)
        return factor * torch.nn.functional.layer_norm(x, shape)

    with pytest.raises(SystemExit, match=said):
        run_norm(broken)


def test_the_module_in_use_passes() -> None:
    from normext import _C

    assert why_not(Path(_C.__file__)) == ""
