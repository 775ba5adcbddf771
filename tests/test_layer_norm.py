"""LayerNorm's own: means far from zero, and what is done about them. The rest is in test_row_norms.py."""

import pytest
import torch
from inputs import DTYPES, HALF, dtype_name, gradients, leaves, values
from norms import EPS, LAYER_NORM
from test_row_norms import check_backward, check_forward
from torch import Tensor

import normext

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


@pytest.mark.parametrize("columns", [16, 100, 4097, 20000])
@pytest.mark.parametrize("ratio", [1e3, 1e6])
def test_mean_of_many_deviations(backend: str, ratio: float, columns: int) -> None:
    x = (ratio + torch.randn(3, columns, dtype=torch.float64)).float().to(backend)
    check_forward(LAYER_NORM, x, *LAYER_NORM.parameters(columns, device=backend))
    check_backward(LAYER_NORM, x, torch.randn_like(x), *LAYER_NORM.parameters(columns, device=backend))


@pytest.mark.parametrize("columns", [3, 16, 1000, 8193])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e6 + 0.1, -1e30, torch.finfo(torch.float32).max])
def test_constant_rows_are_their_bias(backend: str, value: float, columns: int) -> None:
    x = torch.full((2, columns), value, device=backend)
    weight, bias = LAYER_NORM.parameters(columns, device=backend)
    output, mean, rstd = LAYER_NORM.forward(x, x.shape[-1:], weight, bias)
    assert torch.equal(mean, x[:, :1])
    assert torch.equal(output, bias.expand_as(x))
    torch.testing.assert_close(rstd, torch.full_like(rstd, EPS**-0.5), rtol=2**-22, atol=0)


@pytest.mark.parametrize("ratio", [1, 3, 100])
@pytest.mark.parametrize("columns", [15, 64, 333, 1000, 5000])
@pytest.mark.parametrize("dtype", HALF, ids=dtype_name)
def test_half_mean_of_some_deviations(backend: str, dtype: torch.dtype, columns: int, ratio: float) -> None:
    """bfloat16 is summed about zero, and otherwise where the mean is too far from it."""
    x = torch.randn(20, columns)
    x[::3] += ratio
    weight, bias = LAYER_NORM.parameters(columns, dtype=dtype, device=backend)
    check_forward(LAYER_NORM, x.to(dtype).to(backend), weight, bias)
    check_backward(LAYER_NORM, x.to(dtype).to(backend), torch.randn(20, columns).to(dtype).to(backend), weight, bias)


@pytest.mark.parametrize("small_bias", [False, True], ids=["weight", "bias"])
@pytest.mark.parametrize("small", [1e-39, 2.0**-126, 2.0**-100, 2.0**-31, 2.0**-30])
@pytest.mark.parametrize("rows", [20, 100])
def test_bfloat16_outputs_may_be_subnormal(backend: str, rows: int, small: float, small_bias: bool) -> None:
    weight, bias = torch.ones(96, device=backend), torch.zeros(96, device=backend)
    weight[3::7] = 0 if small_bias else small
    bias[3::7] = small if small_bias else 0
    x = values(rows, 96, dtype=torch.bfloat16, device=backend)
    output, mean, rstd = LAYER_NORM.forward(x, x.shape[-1:], weight, bias)
    expected = (x.double() - mean.double().view(-1, 1)) * rstd.double().view(-1, 1) * weight.double() + bias.double()
    spacing = 2.0**-133  # of bfloat16's subnormal numbers
    rtol = 0 if small < 2.0**-126 else 2.0**-8  # normal numbers are rounded relative to their size
    torch.testing.assert_close(output[:, 3::7].double(), expected[:, 3::7], rtol=rtol, atol=0.51 * spacing)


@dtypes
def test_row_of_one_is_its_bias(backend: str, dtype: torch.dtype) -> None:
    parameter = LAYER_NORM.parameters(1, dtype=dtype, device=backend)
    inputs = leaves(values(5, 1, dtype=dtype, device=backend), *parameter)
    output = normext.layer_norm(inputs[0], [1], *inputs[1:])
    grad_input, grad_weight, _ = gradients(output, inputs, torch.ones_like(output))
    assert torch.equal(output, inputs[2].expand_as(output))
    assert torch.equal(grad_input, torch.zeros_like(grad_input))
    assert torch.equal(grad_weight, torch.zeros_like(grad_weight))


@pytest.mark.parametrize("dtype", HALF, ids=dtype_name)
def test_row_does_not_depend_on_rows_far_from_zero(backend: str, dtype: torch.dtype) -> None:
    """Rows whose mean is near zero are computed otherwise, which shows in one element of some hundred thousand."""
    x, grad_output = (values(256, 4000, dtype=dtype, device=backend) for _ in range(2))
    weight, bias = LAYER_NORM.parameters(4000, dtype=dtype, device=backend)

    def near_rows(x: Tensor) -> list[Tensor]:
        output, mean, rstd = LAYER_NORM.forward(x, x.shape[-1:], weight, bias)
        grad_input, _, _ = LAYER_NORM.backward(grad_output, x, [4000], (mean, rstd), weight, [True, False, False])
        return [output[1::2], grad_input[1::2]]

    among_others = x.clone()
    among_others[::2] += 3
    assert all(torch.equal(a, b) for a, b in zip(near_rows(x), near_rows(among_others), strict=True))
