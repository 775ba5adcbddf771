"""The README's Python does what it says."""

import re
from pathlib import Path

import torch

import normext

README = Path(__file__).parent.parent / "README.md"


def test_examples_run_and_the_swap_keeps_the_model() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.LayerNorm([6, 6])).eval()
    x, state = torch.randn(2, 3, 8, 8), {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(x)
    names = {"model": model}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(block, names)
    assert [type(module) for module in model][1:] == [normext.BatchNorm2d, normext.LayerNorm]
    torch.testing.assert_close(model.state_dict(), state)
    torch.testing.assert_close(model(x), expected)
