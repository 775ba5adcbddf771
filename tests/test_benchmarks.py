"""What a benchmark writes of a run: as much as its tables and plots need, once more from the file alone."""

import dataclasses
import io
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from rich.console import Console

import normext
from benchmarks import models, peers, plots, record, report, training
from benchmarks.cases import TRAINING, Case, cases
from benchmarks.models import Network
from benchmarks.results import Result, Run, quartiles

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
KEPT = sorted(RESULTS.glob("*/*-full.json"))
FUSED = {(case.norm, case.layout): case for case in cases("cpu") if " + " in case.norm}.values()
WHERE: dict[str, object] = {
    "device": "cpu", "processor": "a processor", "threads": 2, "instruction_set": "avx2", "torch": "2.13.0",
    "normext": "0.1.0", "seconds": 1, "waited": 0.0,
}  # fmt: skip


def tables(run: Run) -> str:
    console = Console(file=io.StringIO(), width=report.WIDTH)
    report.show(console, run)
    return console.file.getvalue()


@pytest.fixture
def run() -> Run:
    cases = [
        Case("layer_norm", "row length", (64, 256)),
        Case("layer_norm", "row length", (16, 1024), dtype=torch.bfloat16),
        Case("layer_norm", "images", (2, 3, 8, 8), normalized=3),
        Case("rms_norm", "tiny", (4, 64)),
        Case("batch_norm", "images", (2, 3, 8, 8), channels_last=True),
        Case("group_norm + silu", "UNet", (2, 32, 8, 8)),
    ]
    seconds = quartiles({"copy": [1e-6, 2e-6, 3.123456e-6], "normext": [3e-6], "torch eager": [4e-6, 8e-6, 6e-6]})
    results = [Result(case, direction, seconds, {}) for case in cases for direction in ("forward", "backward")]
    results[0].skipped["a peer"] = "ImportError: not here"
    return Run(WHERE, results, {"F.layer_norm 4x[64]": {name: seconds[name] for name in ("normext", "torch eager")}})


def test_a_run_is_read_as_it_was_written(run: Run, tmp_path: Path) -> None:
    path = record.write(tmp_path / "run.json", run)
    again = record.read(path)
    assert [(r.case, r.direction, r.skipped) for r in again.results] == [
        (r.case, r.direction, r.skipped) for r in run.results
    ]
    assert tables(again) == tables(run)
    assert record.write(tmp_path / "again.json", again).read_text() == path.read_text()
    assert sum('"norm"' in line for line in path.read_text().splitlines()) == len(run.results)  # a line a case


def test_plots_are_drawn_of_what_was_read(run: Run, tmp_path: Path) -> None:
    read = record.read(record.write(tmp_path / "run.json", run))
    drawn = [plot.name for plot in plots.draw(tmp_path, "run", read)]
    kinds = ("layer_norm-speedup", "layer_norm-bandwidth", "rms_norm-speedup", "batch_norm-speedup")
    kinds += ("group_norm-silu-speedup",)
    assert drawn == [f"run-{kind}.png" for kind in kinds]
    assert all((tmp_path / name).stat().st_size for name in drawn)


@pytest.mark.parametrize(
    ("norm", "tensors"),  # that forward, backward and both move
    [
        ("rms_norm", (2, 3, 5)),
        ("add_rms_norm", (4, 4, 8)),
        ("batch_norm", (2, 3, 5)),
        ("group_norm + silu", (2, 3, 5)),
        ("instance_norm + leaky_relu", (2, 3, 5)),
        ("batch_norm + add + relu", (3, 4, 7)),
    ],
)
def test_least_bytes(norm: str, tensors: tuple[int, int, int]) -> None:
    case = Case(norm, "check", (1024, 32, 64))
    moved = [case.least_bytes(direction) / (1024 * 32 * 64 * 4) for direction in TRAINING]
    assert moved == pytest.approx(tensors, rel=1e-3)


@pytest.mark.parametrize("case", FUSED, ids=lambda case: f"{case.norm}-{case.layout}")
def test_what_is_fused_is_what_torch_computes(case: Case) -> None:
    case = dataclasses.replace(case, shape=(2, 64, *[3] * (len(case.shape) - 2)))
    leaves = case.leaves("cpu", gradients=False)
    results = [norms()[case.norm](*case.arguments(leaves, True)) for norms in (peers._normext, peers._eager)]
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_kept_results_are_complete(path: Path) -> None:
    run = record.read(path)
    assert run.where["commit"] and run.where["torch"]
    assert all({"copy", "normext", "torch eager"} <= set(result.seconds) for result in run.results)
    assert "overall" in tables(run)


def test_a_step_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way takes it, converts what there is, and computes what torch does."""
    small = Network("small", {"cpu": lambda: models.unet((32, 32))}, {"cpu": (1, 4, 8, 8)})
    monkeypatch.setattr(training, "SECONDS", 0.0)
    found = {("small", "eager"): training.measure(small, "eager", "cpu")}
    assert list(found["small", "eager"]) == list(training.WAYS["eager"])
    assert [line.count("|") for line in training.rows(found)] == [3] * 6
    losses = [training.way_of(way, small.make["cpu"](), "eager") for way in (training.TORCH, training.FUSE)]
    assert all(loss(torch.ones(1, 4, 8, 8)).isfinite() for loss in losses)


@pytest.mark.parametrize("network", models.NETWORKS, ids=lambda network: network.name)
def test_networks_are_all_of_norms_that_convert(network: Network) -> None:
    with torch.device("meta"):
        network_, x = network.make["cpu"](), torch.empty(network.shape["cpu"])
    assert network_(x).is_meta
    report = normext.convert(network_, fuse=True)
    assert report.converted and not report.left
    assert bool(report.fused) == (network.name in ("ResNet-50", "UNet", "nnU-Net"))
