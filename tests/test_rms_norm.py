"""RMSNorm's own: its eps, its range, and torch beside it. The rest is in test_row_norms.py."""

import pytest
import torch
from inputs import DTYPES, HALF, dtype_name, values
from norms import RMS_NORM
from reference import assert_close
from test_row_norms import check_backward, check_forward
from torch.nn import functional as F

import normext

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


@dtypes
def test_eps_of_none_is_that_of_the_arithmetic(backend: str, dtype: torch.dtype) -> None:
    """As torch has it, whose documentation says the input's dtype: half types are computed in float32."""
    x = (1e-3 * values(3, 33)).to(dtype).to(backend)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert torch.equal(normext.rms_norm(x, [33]), normext.rms_norm(x, [33], eps=eps))
    assert_close(normext.rms_norm(x, [33]), RMS_NORM.expected(x, [33], eps=eps).output)
    assert torch.equal(normext.RMSNorm(33, dtype=dtype, device=backend)(x), normext.rms_norm(x, [33]))
    torch.testing.assert_close(normext.rms_norm(x, [33]), F.rms_norm(x, [33]))


@pytest.mark.parametrize("columns", [3, 16, 17, 100, 1000, 8193, 20000])
@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e18, 1e-18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_squares_beyond_the_range(backend: str, dtype: torch.dtype, scale: float, columns: int) -> None:
    """Of float32, in which they are summed where they can be."""
    x = (scale * values(20, columns, dtype=torch.float64)).to(dtype).to(backend)
    weight, _ = RMS_NORM.parameters(columns, dtype=dtype, device=backend)
    check_forward(RMS_NORM, x, weight, eps=0.0)
    check_backward(RMS_NORM, x, values(20, columns, dtype=dtype, device=backend), weight, eps=0.0)


@pytest.mark.parametrize("gradient", [1e-30, 1e25])
@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_products_beyond_the_range(backend: str, dtype: torch.dtype, scale: float, gradient: float) -> None:
    x = (scale * values(20, 300, dtype=torch.float64)).to(dtype).to(backend)
    grad_output = (gradient * values(20, 300, dtype=torch.float64)).to(dtype).to(backend)
    check_backward(RMS_NORM, x, grad_output, eps=0.0)


@pytest.mark.parametrize("ratio", [3, 1e3, 1e6])
def test_a_mean_of_many_deviations_is_like_any_other_number(backend: str, ratio: float) -> None:
    x = (ratio + torch.randn(3, 1000, dtype=torch.float64)).float().to(backend)
    check_forward(RMS_NORM, x)
    check_backward(RMS_NORM, x, torch.randn_like(x))


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_rows_of_zeros(backend: str, eps: float) -> None:
    x = torch.zeros(3, 100, device=backend)
    torch.testing.assert_close(normext.rms_norm(x, [100], eps=eps), F.rms_norm(x, [100], eps=eps), equal_nan=True)


@pytest.mark.parametrize("dtype", HALF, ids=dtype_name)
def test_float32_weight_beside_a_half_input(backend: str, dtype: torch.dtype) -> None:
    """The output is of the input's dtype, as torch's, and the weight's gradient of the weight's."""
    x = values(6, 96, dtype=dtype, device=backend)
    weight = values(96, device=backend).requires_grad_()
    output = normext.rms_norm(x, [96], weight)
    output.sum().backward()
    assert (output.dtype, weight.grad.dtype) == (F.rms_norm(x, [96], weight).dtype, torch.float32)
    check_forward(RMS_NORM, x, weight.detach())
