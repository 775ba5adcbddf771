"""A tensor on another device than the rest is an error: kernels take pointers, which do not tell where they point."""

import pytest
import torch
from torch import Tensor

import normext  # noqa: F401  it registers the operators

ops = torch.ops.normext


def operators() -> dict[str, tuple[dict[str, Tensor], dict[str, object]]]:
    """The tensors and the other arguments of each operator."""
    x, row, channel = torch.randn(4, 3, 5), torch.ones(5), torch.ones(3)
    weights, channels = {"weight": row, "bias": row}, {"weight": channel, "bias": channel}
    running = {"running_mean": channel, "running_var": channel}
    per_row, per_channel, per_sample = torch.ones(4, 3, 1), torch.ones(3), torch.ones(4, 1, 5)
    layer_norm = {"normalized_shape": [5], "eps": 1e-5}
    mask = {"output_mask": [True, True, True]}
    return {
        "layer_norm_forward": ({"input": x, **weights}, layer_norm),
        "layer_norm_backward": (
            {"grad_output": x, "input": x, "mean": per_row, "rstd": per_row, "weight": row},
            {**layer_norm, **mask},
        ),
        "rms_norm_forward": ({"input": x, "weight": row}, layer_norm),
        "rms_norm_backward": (
            {"grad_output": x, "input": x, "rstd": per_row, "weight": row},
            {**layer_norm, "output_mask": [True, True]},
        ),
        "add_norm_forward": (
            {"input": x, "residual": x, **weights},
            {**layer_norm, "weight_offset": 0.0, "centered": True},
        ),
        "add_norm_backward": (
            {"grad_output": x, "grad_sum": x, "sum": x, "mean": per_row, "rstd": per_row, "weight": row},
            {**layer_norm, "output_mask": [True, False, True, True], "weight_offset": 0.0, "centered": True},
        ),
        "adaptive_norm_forward": (
            {"input": x, "scale": per_sample, "shift": per_sample},
            {"eps": 1e-5, "centered": True},
        ),
        "adaptive_norm_backward": (
            {"grad_output": x, "input": x, "mean": per_row, "rstd": per_row, "scale": per_sample},
            {"eps": 1e-5, "centered": True, **mask},
        ),
        "batch_norm_forward": ({"input": x, "residual": x, **running, **channels}, {"training": True, "eps": 1e-5}),
        "batch_norm_backward": (
            {"grad_output": x, "input": x, "mean": per_channel, "rstd": per_channel, "weight": channel},
            {"training": True, "eps": 1e-5, **mask},
        ),
        "batch_norm_activation_backward": (
            {
                **{"grad_output": x, "input": x, "mean": per_channel, "rstd": per_channel, "residual": x},
                **channels,
            },
            {"training": True, "eps": 1e-5, "output_mask": [True] * 4, "activation": "relu"},
        ),
        "batch_norm_update_stats": (
            {**running, "mean": per_channel, "var": per_channel},
            {"count": 20, "momentum": 0.1},
        ),
    }


ARGUMENTS = [(operator, name) for operator, (tensors, _) in operators().items() for name in tensors]


@pytest.mark.parametrize(("operator", "name"), ARGUMENTS)
@pytest.mark.parametrize("odd", ["meta", "cuda"])
def test_every_tensor_is_on_one_device(operator: str, name: str, odd: str) -> None:
    if odd == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    tensors, others = operators()[operator]
    getattr(ops, operator)(**tensors, **others)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        getattr(ops, operator)(**{**tensors, name: tensors[name].to(odd)}, **others)
