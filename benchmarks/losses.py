"""Trains a ResNet-50 with normext's BatchNorm and one with torch's: both losses, and what a step takes.

    python -m benchmarks.losses  # on a machine with a GPU

Images are noise around a pattern of their class, so there is something to learn. Both networks start from the same
weights, see the same batches and share all but their norms: in eager mode, under torch.compile, and as a CUDA graph.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import normext
from benchmarks import machine, record
from benchmarks.models import resnet50
from benchmarks.peers import EAGER, NORMEXT
from benchmarks.results import digits, quartiles

NORMS: dict[str, type[nn.Module]] = {NORMEXT: normext.BatchNorm2d, EAGER: nn.BatchNorm2d}
CLASSES, SIDE = 100, 224
WARMUP = 5  # steps that are not timed: torch.compile compiles, cuDNN chooses

Step = Callable[[Tensor, Tensor], Tensor]


def batches(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Images [count, size, 3, side, side] and their classes [count, size]."""
    generator = torch.Generator("cuda").manual_seed(0)
    patterns = torch.randn(CLASSES, 3, SIDE // 32, SIDE // 32, device="cuda", generator=generator)
    classes = torch.randint(CLASSES, (count, size), device="cuda", generator=generator)
    images = F.interpolate(patterns[classes.flatten()], scale_factor=32)
    images = images + torch.randn(images.shape, device="cuda", generator=generator)
    return images.view(count, size, 3, SIDE, SIDE), classes


def eager(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """One step of training with automatic mixed precision; returns the loss."""

    def step(images: Tensor, classes: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(images), classes)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return loss.detach()

    return step


def graph(step: Step, images: Tensor, classes: Tensor) -> Step:
    """The step, captured: a call copies its batch to where the graph reads it."""
    images, classes = images.clone(), classes.clone()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured, stream=torch.cuda.current_stream()):
        loss = step(images, classes)

    def replay(new_images: Tensor, new_classes: Tensor) -> Tensor:
        images.copy_(new_images)
        classes.copy_(new_classes)
        captured.replay()
        return loss.clone()

    return replay


def train(name: str, mode: str, images: Tensor, classes: Tensor) -> tuple[list[float], list[float]]:
    """The losses of all steps, and the seconds of those after the warm-up."""
    torch.manual_seed(0)
    model = resnet50(NORMS[name], CLASSES).cuda().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step = eager(torch.compile(model) if mode == "compile" else model, optimizer)  # type: ignore[arg-type]
    losses, events = [], []
    for number in range(len(images)):
        if number == WARMUP:
            torch.cuda.synchronize()
            if mode == "graph":
                step = graph(step, images[0], classes[0])
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        losses.append(step(images[number], classes[number]))
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    seconds = [start.elapsed_time(end) / 1e3 for start, end in events[WARMUP:]]
    return torch.stack(losses).tolist(), seconds


def main() -> None:
    """Trains in all modes, prints the table, and writes the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("it needs a CUDA GPU, and torch finds none")
    torch.cuda.set_stream(torch.cuda.Stream())  # the default one cannot be captured
    images, classes = batches(arguments.steps, arguments.batch)
    images = images.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, images.shape[:2])

    where = machine.describe("cuda")
    folder = arguments.output / machine.slug(where)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{str(where['date'])[:16].replace(':', '')}-losses.json"
    method = f"ResNet-50, {SIDE}x{SIDE}, batch {arguments.batch}, channels_last, autocast to bfloat16, SGD; CUDA events"
    table = Table("mode", "normext, ms", "torch, ms", "torch / normext", "last losses", "losses apart by")
    runs: list[dict[str, object]] = []
    for mode in ("eager", "graph", "compile"):
        torch._dynamo.reset()
        results = {name: train(name, mode, images, classes) for name in NORMS}
        (ours, our_seconds), (theirs, their_seconds) = results[NORMEXT], results[EAGER]
        steps = quartiles({NORMEXT: our_seconds, EAGER: their_seconds})
        times = steps[NORMEXT][1], steps[EAGER][1]
        apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        table.add_row(
            mode, f"{times[0] * 1e3:.2f}", f"{times[1] * 1e3:.2f}", f"{times[1] / times[0]:.3f}",
            f"{ours[-1]:.3f}, {theirs[-1]:.3f}", f"{apart:.3f}",
        )  # fmt: skip
        losses = {name: [digits(loss) for loss in losses] for name, (losses, _) in results.items()}
        runs.append({"mode": mode, "microseconds": record.microseconds(steps), "losses": losses})
        path.write_text(record.document({"machine": where, "method": method, "figures": record.FIGURES, "runs": runs}))
    console = Console(width=110)
    console.print(table)
    console.print(f"wrote {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
