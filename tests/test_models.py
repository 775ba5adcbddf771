"""Models that nobody here wrote train by normext as by torch: a handful of those of `python -m tests.models`."""

import itertools

import pytest
import torch
from models import MODELS, PARTS, WAYS, available, examined

HANDFUL = ("bert", "llama", "gemma2", "resnet10t", "UNet2DModel")
LUCK = 2.0  # of two draws: a network multiplies whatever was rounded first


@pytest.mark.parametrize("model", [m for m in MODELS if m.name.split()[1] in HANDFUL], ids=lambda model: model.name)
def test_three_steps_are_no_further_from_float64_than_torchs(model: object) -> None:
    if model not in available():
        pytest.skip(f"{model.name.split()[0]} is not installed")
    result = examined(model, 2, (torch.float32,))
    assert len(result.report.converted) == result.norms > 0 and not result.report.left
    assert result.calls[1] == result.norms
    for way, part in itertools.product(WAYS, PARTS):
        ratio = result.mean(way, torch.float32, part)
        assert ratio is None or ratio < LUCK
