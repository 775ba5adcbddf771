"""What the README, the pages of docs/ and the docstrings show runs, and their links lead somewhere."""

import doctest
import re
from pathlib import Path

import pytest
import torch

import normext

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def run_examples(page: Path, names: dict[str, object]) -> None:
    """A page's blocks are one program."""
    for block in PYTHON.findall(page.read_text()):
        exec(compile(block, page.name, "exec"), names)


def test_examples_run_and_converting_keeps_the_model() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.LayerNorm([6, 6])).eval()
    x, state = torch.randn(2, 3, 8, 8), {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(x)
    run_examples(README, {"model": model, "x": x})
    assert [type(module) for module in model][1:] == [normext.BatchNorm2d, normext.LayerNorm]
    torch.testing.assert_close(model.state_dict(), state)
    torch.testing.assert_close(model(x), expected)


@pages
@pytest.mark.filterwarnings("ignore")  # what torch's exporters warn of
def test_examples_of_the_docs_run(page: Path) -> None:
    text = page.read_text()
    if "onnxruntime" in text:
        pytest.importorskip("onnxruntime")
    if "torch.distributed" in text and not torch.distributed.is_available():
        pytest.skip("torch is built without torch.distributed")
    torch.manual_seed(0)
    run_examples(page, {"__name__": "__main__"})


def test_examples_of_docstrings_run() -> None:
    for name in normext.__all__:
        (example, *_) = doctest.DocTestFinder(recurse=False).find(getattr(normext, name), name) or [None]
        if example:
            example.globs.update(torch=torch, normext=normext, __name__="__main__")
            assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("page", [README, ROOT / "examples" / "README.md", *PAGES], ids=lambda page: str(page.stem))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target


def test_every_public_name_is_in_the_docs() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    missing = [name for name in normext.__all__ if name.strip("_") == name and not re.search(rf"\b{name}\b", text)]
    assert not missing
