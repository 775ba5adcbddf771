"""More than 2^31 elements: offsets that do not fit into 32 bits. Minutes, and 17 GiB of memory."""

import pytest
import reference
import torch
from reference import assert_close
from torch import Tensor

import normext

pytestmark = pytest.mark.slow
PERIOD = 2**16  # the tensors repeat a short pattern, whose statistics are then those of the whole


def repeated(pattern: Tensor, size: int) -> Tensor:
    """The first ``size`` elements of the pattern, again and again."""
    result = torch.empty(size, dtype=pattern.dtype)
    whole = size // pattern.numel() * pattern.numel()
    result[:whole].view(-1, pattern.numel()).copy_(pattern.expand(whole // pattern.numel(), -1))
    result[whole:] = pattern[: size - whole]
    return result


def test_layer_norm_of_many_rows() -> None:
    columns = 64
    rows = 2**31 // columns + 1024
    pattern = torch.randn(PERIOD).bfloat16()
    x = repeated(pattern, rows * columns).view(rows, columns).requires_grad_()
    weight = torch.randn(columns).bfloat16()
    output = normext.layer_norm(x, [columns], weight)
    expected = reference.layer_norm(pattern.view(-1, columns), [columns], weight, grad_output=pattern.view(-1, columns))
    period = PERIOD // columns
    for part in (output[:period], output[-period:]):
        assert_close(part, expected.output)
    (grad,) = torch.autograd.grad(output, x, x.detach())
    for part in (grad[:period], grad[-period:]):
        assert_close(part, expected.grad_input)


def test_layer_norm_of_a_long_row() -> None:
    columns = 2**31 + PERIOD
    pattern = torch.randn(PERIOD).bfloat16()
    x = repeated(pattern, columns).view(1, columns).requires_grad_()
    output = normext.layer_norm(x, [columns])
    expected = reference.layer_norm(pattern, [PERIOD], grad_output=pattern)
    for part in (output[0, :PERIOD], output[0, -PERIOD:]):
        assert_close(part, expected.output)
    (grad,) = torch.autograd.grad(output, x, x.detach())
    for part in (grad[0, :PERIOD], grad[0, -PERIOD:]):
        assert_close(part, expected.grad_input)


def samples_alike(layout: str, channels: int, plane: int) -> tuple[Tensor, Tensor]:
    """Many samples, and one of them."""
    samples = 2**31 // (channels * plane) + 2
    shape = {"NCHW": (channels, plane), "NHWC": (plane, channels)}[layout]
    pattern = torch.randn(channels * plane).bfloat16()
    x = repeated(pattern, samples * channels * plane).view(samples, *shape, 1)
    sample = pattern.view(1, *shape, 1)
    if layout == "NHWC":
        x, sample = x.permute(0, 2, 1, 3), sample.permute(0, 2, 1, 3)
    return x.requires_grad_(), sample


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_group_norm(layout: str) -> None:
    x, sample = samples_alike(layout, 4, 2**14)
    output = normext.group_norm(x, 2)
    expected = reference.group_norm(sample, 2, grad_output=sample)
    for part in (output[:1], output[-1:]):
        assert_close(part, expected.output)
    (grad,) = torch.autograd.grad(output, x, x.detach())
    for part in (grad[:1], grad[-1:]):
        assert_close(part, expected.grad_input)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_batch_norm(layout: str) -> None:
    channels, plane = 4, 2**14
    x, sample = samples_alike(layout, channels, plane)
    samples = len(x)
    bias = torch.zeros(channels, requires_grad=True)
    output = normext.batch_norm(x, None, None, None, bias, training=True)
    expected = reference.batch_norm(sample, grad_output=sample)
    for part in (output[:1], output[-1:]):
        assert_close(part, expected.output)
    (grad,) = torch.autograd.grad(output, x, x.detach(), retain_graph=True)
    for part in (grad[:1], grad[-1:]):
        assert_close(part, expected.grad_input)
    del grad
    # A sum of so many ones sticks at 2^24 if it is kept in one float32.
    (grad_bias,) = torch.autograd.grad(output, bias, torch.ones((), dtype=x.dtype).expand_as(output))
    assert torch.equal(grad_bias, torch.full((channels,), float(samples * plane)))
