"""The programs of examples/ run, and show what they say they show."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import normext
from examples import batch_size, gradient_flow, transformer_block, tutorial_numbers
from examples.transformer_block import TransformerBlock


@pytest.mark.parametrize("program", [tutorial_numbers, transformer_block], ids=lambda module: module.__name__)
def test_it_prints(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    program.main()
    assert "LayerNorm" in capsys.readouterr().out


def test_gradients_vanish_without_a_norm_and_not_with_one(tmp_path: Path) -> None:
    found = {
        (norm, activation, place): gradient_flow.gradients(norm, activation, place, depth=30, width=64)
        for norm in gradient_flow.NORMS
        for activation in gradient_flow.ACTIVATIONS
        for place in gradient_flow.PLACES
    }
    for (norm, activation, place), sizes in found.items():
        assert len(sizes) == 30
        if norm == "none":
            assert sizes[0] < 1e-6
        elif norm == "BatchNorm":
            assert sizes[0] > 5  # they grow towards the first layer
        elif norm == "RMSNorm" or place == "before":
            assert 0.1 < sizes[0] < 10, (norm, activation, place)
    pytest.importorskip("matplotlib")
    gradient_flow.draw(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size


@pytest.mark.parametrize("norm", batch_size.NORMS)
def test_only_batch_norm_looks_at_the_rest_of_the_batch(norm: Callable[[int], nn.Module]) -> None:
    small, large = (batch_size.spread(norm, batch, draws=16) for batch in (2, 64))
    if norm is normext.BatchNorm1d:
        assert small > 3 * large > 0
    else:
        assert small == large == 0


def test_batch_norm_learns_little_in_batches_of_two() -> None:
    batch_norm, layer_norm = (
        batch_size.accuracy(norm, 2, samples=512) for norm in (normext.BatchNorm1d, normext.LayerNorm)
    )
    assert layer_norm > batch_norm + 0.1


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
def test_the_block_is_the_one_that_torch_has(norm_first: bool) -> None:
    ours = TransformerBlock(32, 4, 64, norm_first=norm_first)
    theirs = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=norm_first)
    names = {"attention": "self_attn", "feed_forward.0": "linear1", "feed_forward.2": "linear2"}
    for name, module in ours.named_modules():
        if name in names or name in ("norm1", "norm2"):
            module.load_state_dict(theirs.get_submodule(names.get(name, name)).state_dict())
    x = torch.randn(2, 10, 32)
    torch.testing.assert_close(ours(x), theirs(x))
