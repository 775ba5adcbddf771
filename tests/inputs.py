"""The tensors that tests are made of."""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
HALF = [torch.bfloat16, torch.float16]

# (dtype of the input, dtype of its parameters): a half input takes parameters of its own dtype, or float32 ones.
DTYPE_PAIRS = [(dtype, dtype) for dtype in DTYPES] + [(dtype, torch.float32) for dtype in HALF]

AFFINE = [(True, True), (True, False), (False, True), (False, False)]  # (weight?, bias?)

# torch.nn's BatchNorm takes `bias` in newer versions only, and normext's takes what torch.nn's does.
BATCH_NORM_TAKES_BIAS = "bias" in inspect.signature(torch.nn.BatchNorm1d).parameters
without_bias = pytest.param(
    {"bias": False}, marks=pytest.mark.skipif(not BATCH_NORM_TAKES_BIAS, reason="unknown to this torch")
)


def dtype_name(value: object) -> str | None:
    """A test id for dtypes; pytest's own for the rest."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def affine_name(affine: tuple[bool, bool]) -> str:
    """A test id for a pair of AFFINE."""
    return "+".join(name for name, there in zip(("weight", "bias"), affine, strict=True) if there) or "plain"


def values(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Numbers whose mean and deviation differ along every dimension, so that a value of a neighbour's is noticed."""
    x = torch.randn(shape, dtype=torch.float64)
    for i, size in enumerate(shape):
        along = [-1 if j == i else 1 for j in range(len(shape))]
        x = x * (0.5 + torch.rand(size, dtype=torch.float64)).view(along)
        x = x + 0.5 * torch.randn(size, dtype=torch.float64).view(along)
    return x.to(dtype).to(device)


def parameters(
    affine: tuple[bool, bool], *shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor | None, Tensor | None]:
    """A weight around one and a bias around zero, or None in their places."""
    weight = (1 + 0.5 * torch.randn(shape)).to(dtype).to(device) if affine[0] else None
    bias = torch.randn(shape).to(dtype).to(device) if affine[1] else None
    return weight, bias


def running(channels: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """A running mean and a running variance."""
    mean, var = torch.randn(channels), 0.5 + torch.rand(channels)
    return mean.to(dtype).to(device), var.to(dtype).to(device)


def channels_last(x: Tensor) -> Tensor:
    """The same values with the channels innermost."""
    return x.to(memory_format=torch.channels_last_3d if x.dim() == 5 else torch.channels_last)


def off_by(x: Tensor, offset: int = 1) -> Tensor:
    """The same values and strides, ``offset`` elements into a larger storage: not aligned to a vector."""
    storage = x.new_empty(offset + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1)
    return storage.as_strided(x.shape, x.stride(), offset).copy_(x)


def leaves(*tensors: Tensor | None) -> list[Tensor | None]:
    """The same tensors as leaves that require gradients."""
    return [None if t is None else t.detach().requires_grad_() for t in tensors]


def gradients(output: Tensor, inputs: list[Tensor | None], grad_output: Tensor) -> list[Tensor | None]:
    """The gradient of each input, None for those that are None."""
    found = iter(torch.autograd.grad(output, [t for t in inputs if t is not None], grad_output))
    return [None if t is None else next(found) for t in inputs]


def assert_same(found: Tensor, wanted: Tensor) -> None:
    """Bit for bit; on CUDA's kernels, of which others take sums and rows of other alignments, to a few roundings."""
    if not found.is_cuda and "NORMEXT_EMULATED" not in os.environ:
        assert torch.equal(found, wanted)
        return
    rounding = 8 * torch.finfo(found.dtype).eps
    torch.testing.assert_close(found, wanted, rtol=rounding, atol=rounding)


@contextmanager
def copies() -> Iterator[list[str]]:
    """Names, once it is left, every operator that has copied a tensor, those called from C++ among them."""
    seen: list[str] = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield seen
    seen += [event.name for event in profile.events() if event.name in ("aten::copy_", "aten::clone")]
