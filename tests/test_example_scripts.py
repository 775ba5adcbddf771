"""The programs of examples/ run, and show what they say they show."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import normext
from examples import batch_size, dit_block, gradient_flow, transformer_block, tutorial_numbers, unet_block
from examples.saved import saved_bytes
from examples.transformer_block import FusedTransformerBlock, TransformerBlock

PROGRAMS = [tutorial_numbers, transformer_block, dit_block, unet_block]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda module: module.__name__)
def test_it_prints(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    program.main()
    printed = capsys.readouterr().out
    assert "LayerNorm" in printed or "backward" in printed


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
            assert sizes[0] > 5, (activation, place)  # they grow towards the first layer
        elif norm == "RMSNorm" or place == "before":
            assert 0.1 < sizes[0] < 20, (norm, activation, place)
        elif activation == "relu":
            assert sizes[0] > 10, (norm, activation, place)
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
@pytest.mark.parametrize("block", [TransformerBlock, FusedTransformerBlock])
def test_the_block_is_the_one_that_torch_has(block: type[TransformerBlock], norm_first: bool) -> None:
    ours = block(32, 4, 64, norm_first=norm_first)
    theirs = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=norm_first)
    names = {"attention": "self_attn", "feed_forward.0": "linear1", "feed_forward.2": "linear2"}
    for name, module in ours.named_modules():
        if name in names or name in ("norm1", "norm2"):
            module.load_state_dict(theirs.get_submodule(names.get(name, name)).state_dict())
    compare_training(ours, theirs, names, torch.randn(2, 10, 32))


def compare_training(ours: nn.Module, theirs: nn.Module, names: dict[str, str], *inputs: Tensor) -> None:
    """Outputs, and the gradients of inputs and parameters; ``names`` of modules are others in the second."""
    outputs, gradients = [], []
    for model in (ours, theirs):
        leaves = [x.clone().requires_grad_() for x in inputs]
        outputs.append(model(*leaves))
        outputs[-1].square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    for name, parameter in ours.named_parameters():
        for mine, other in names.items():
            name = name.replace(f"{mine}.", f"{other}.")
        torch.testing.assert_close(parameter.grad, theirs.get_parameter(name).grad, rtol=1e-4, atol=1e-4)


def test_a_dit_block_is_the_one_of_torchs_operators_and_begins_as_the_identity() -> None:
    ours, theirs = dit_block.DiTBlock(32, 4), dit_block.ByHand(32, 4)
    x, condition = torch.randn(3, 10, 32), torch.randn(3, 32)
    assert torch.equal(ours(x, condition), x)
    for parameter in ours.modulation.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs.load_state_dict(ours.state_dict())
    compare_training(ours, theirs, {}, x, condition)
    assert saved_bytes(ours, x, condition) < saved_bytes(theirs, x, condition)


@pytest.mark.parametrize("out_channels", [16, 24])
def test_a_unet_block_is_the_one_of_torchs_layers(out_channels: int) -> None:
    ours, theirs = (
        unet_block.UNetBlock(16, out_channels, 8, groups=4, **options)
        for options in ({}, {"norm": unet_block.separate})
    )
    names = {"norm1": "norm1.0", "norm2": "norm2.0"}
    for name, module in ours.named_children():
        theirs.get_submodule(names.get(name, name)).load_state_dict(module.state_dict())
    x, time = torch.randn(2, 16, 6, 6).to(memory_format=torch.channels_last), torch.randn(2, 8)
    compare_training(ours, theirs, names, x, time)
    assert saved_bytes(ours, x, time) < saved_bytes(theirs, x, time)
    assert ours(x, time).is_contiguous(memory_format=torch.channels_last)
