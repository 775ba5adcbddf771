"""The kernels for aarch64, whose baseline is NEON: compiled across, and run by qemu's emulator of that processor.

With Debian's packages g++-aarch64-linux-gnu and qemu-user. Of kernels.cpp's cases one of EVERY, for the sake of time; a
prime, which falls on every choice of dtypes and arguments.
"""

from programs import ROOT, run_checks, skip_without

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
EVERY = 29


def test_kernels() -> None:
    skip_without("cmake", "ninja", COMPILER, EMULATOR)
    target = {"SYSTEM_NAME": "Linux", "SYSTEM_PROCESSOR": "aarch64", "CXX_COMPILER": COMPILER}
    options = [f"-DCMAKE_{name}={value}" for name, value in target.items()]
    options += ["-DCMAKE_EXE_LINKER_FLAGS=-static", "-DNORMEXT_SANITIZE=none"]
    run_checks(ROOT / "build" / "aarch64", options, EMULATOR, "checks", "", str(EVERY))
