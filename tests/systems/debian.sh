#!/usr/bin/env bash
# Builds and tests normext as a newcomer would on another Debian, with its g++ and its Python, in a chroot; and installs
# a wheel of it in a fresh environment there. As root, on a Debian or Ubuntu with debootstrap; CI does not run it.
#   tests/systems/debian.sh [SUITE [pytest's arguments]]      trixie, and a few test files, if not given
# Packages come from where this machine's apt and pip have theirs. The chroot stays, in FOLDER, for the next run.
set -euo pipefail
cd "$(dirname "$0")/../.."
suite=${1:-trixie}
tests=("${@:2}")
[ ${#tests[@]} -gt 0 ] || tests=(-x -q tests/test_build.py tests/test_layer_norm.py tests/test_readme.py)
root=${FOLDER:-$PWD/build/systems/$suite}

if [ ! -e "$root/usr/bin/g++" ]; then
  origin=$(. /etc/os-release && echo "${ID^}")
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Origin: $origin" | head -n 1)
  debootstrap --variant=minbase --include=ca-certificates,g++,git,make,python3-dev,python3-venv "$suite" "$root" "$mirror"
fi
for file in /etc/resolv.conf /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
  [ ! -e "$file" ] || cp --remove-destination "$(realpath "$file")" "$root$file"
done
mkdir -p "$root/normext"
git ls-files -z --cached --others --exclude-standard | tar --null --files-from - -c | tar -x -C "$root/normext"

unshare --fork --pid --root "$root" --mount-proc env -u CMAKE_ARGS HOME=/root LC_ALL=C.UTF-8 bash -euxc '
cd /normext
[ -e /venv ] || python3 -m venv /venv
/venv/bin/pip install --quiet ${TORCH:-torch} numpy "setuptools>=77" cmake ninja pytest hypothesis expecttest
time /venv/bin/pip install --no-build-isolation -v .
/venv/bin/python -m normext
(. /venv/bin/activate && python -m pytest "$@")

# A wheel of that build, in an environment without the tools of one.
/venv/bin/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir /wheels .
[ -e /fresh ] || python3 -m venv /fresh
torch=$(/venv/bin/python -c "from importlib import metadata; print(metadata.version(\"torch\"))")
/fresh/bin/pip install --quiet "torch==$torch" numpy
/fresh/bin/pip install --quiet --no-deps --force-reinstall /wheels/*.whl
cd /
/fresh/bin/python - <<"PROGRAM"
import torch, normext
x = torch.randn(8, 64, requires_grad=True)
for norm in (normext.LayerNorm(64), normext.BatchNorm1d(64), normext.GroupNorm(8, 64, activation="silu")):
    norm(x).sum().backward()
print(normext.__file__, "forward and backward")
PROGRAM' bash "${tests[@]}"
