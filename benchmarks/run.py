"""The run: builds each case's contenders, times them beside a copy of as many bytes, and reports."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from functools import partial

import torch
import torch._dynamo
import torch._functorch.config
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from benchmarks import cases, machine, overhead, plots, record, report, timing, timing_cuda
from benchmarks.cases import Case
from benchmarks.peers import COMPILE, EAGER, NORMEXT, Norm, installed
from benchmarks.results import COPY, Quartiles, Result, Run, quartiles
from benchmarks.timing import Call
from normext import _C


def select(arguments: argparse.Namespace) -> list[Case]:
    """The cases that the arguments ask for, each with the directions they ask for."""
    selected = []
    for shape in cases.cases(arguments.device):
        for dtype in arguments.dtype:
            # On a GPU, where a case takes a fraction of a second, compiling them all would take most of an hour.
            compiled = shape.compiled or (arguments.full and arguments.device == "cpu")
            case = dataclasses.replace(shape, dtype=getattr(torch, dtype), compiled=compiled)
            directions = tuple(
                direction
                for direction in case.directions
                if arguments.filter is None or arguments.filter.search(case.name(direction))
            )
            if directions and (case.quick or arguments.full):
                selected.append(dataclasses.replace(case, directions=directions))
    return selected


def copy(size: int, device: str) -> Call:
    """A copy that moves `size` bytes: it reads half of them and writes half."""
    source = torch.randn(max(1, size // 2 // 4), device=device)  # zeros, for one, some processors move faster
    return partial(torch.empty_like(source).copy_, source)


def contender(norm: Norm, direction: str, arguments: tuple[object, ...], leaves: tuple[Tensor, ...]) -> Call:
    """A call that does what the direction says, and has done it once: a compiler has compiled, errors have come up."""
    forward: Call = partial(norm, *arguments)
    output = norm(*arguments)
    if direction in ("forward", "evaluation"):
        return forward
    grads = [torch.randn_like(t) for t in (output if isinstance(output, tuple) else (output,))]
    if direction == "backward":
        call: Call = partial(torch.autograd.grad, output, leaves, grads, retain_graph=True)
    else:
        call = lambda: torch.autograd.grad(norm(*arguments), leaves, grads)  # noqa: E731
    call()
    return call


def measure(case: Case, peers: dict[str, dict[str, Norm]], device: str) -> Iterator[Result]:
    """Times all contenders of a case, on the same tensors, in one direction after the other."""
    interleaved = timing_cuda.interleaved if device == "cuda" else timing.interleaved
    torch._dynamo.reset()  # else it stops compiling after a few shapes and falls back to eager
    for training in (True, False):
        directions = [direction for direction in case.directions if (direction != "evaluation") == training]
        if not directions:
            continue
        leaves = case.leaves(device, gradients=training)
        for direction in directions:
            contenders = {COPY: copy(case.least_bytes(direction), device)}
            skipped = {}
            for name, norms in peers.items():
                if case.norm not in norms or (name == COMPILE and not case.compiled):
                    continue
                try:
                    contenders[name] = contender(norms[case.norm], direction, case.arguments(leaves, training), leaves)
                except Exception as error:
                    if name in (NORMEXT, EAGER):
                        raise
                    skipped[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            yield Result(case, direction, quartiles(interleaved(contenders)), skipped)


def run(arguments: argparse.Namespace) -> None:
    """All of it, from the arguments to the files."""
    selected = select(arguments)
    if arguments.list:
        print("\n".join(case.name(direction) for case in selected for direction in case.directions))
        return
    if not selected:
        raise SystemExit("no case matches: --list prints what there is, and --full --list all of it")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda":
        if not (torch.cuda.is_available() and _C.build_info["cuda_architectures"]):
            raise SystemExit("--device cuda needs a GPU and a build for it: make gpu-bench")
        timing_cuda.use_own_stream()
    # Backward passes are timed over and over on one graph, which code that reuses the graph's buffers would refuse.
    # What norms save is their input, which is nobody's to reuse, and statistics: there is nothing to lose.
    torch._functorch.config.donated_buffer = False

    # A pipe has no width, and rich takes it for a narrow terminal.
    console = Console(width=None if sys.stdout.isatty() else report.WIDTH)
    peers, missing = installed(arguments.device)
    for name, reason in missing.items():
        console.print(f"without {name}: {reason.splitlines()[0]}", style="dim", markup=False)
    tiny = overhead.calls(arguments.device)

    where = machine.describe(arguments.device)
    started, waited = time.monotonic(), machine.waited()
    results: list[Result] = []
    calls: dict[str, dict[str, Quartiles]] = {}
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    # Drawn between the cases: a thread that draws would draw during them, too.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=sum(len(case.directions) for case in selected) + len(tiny))
        for label, contenders in tiny.items():
            progress.update(task, description=label, refresh=True)
            calls[label] = quartiles(timing.interleaved(contenders))
            progress.advance(task)
        for case in selected:
            progress.update(task, description=escape(f"{case.norm} {case.label} {case.dtype_name}"), refresh=True)
            for result in measure(case, peers, arguments.device):
                results.append(result)
                progress.update(task, advance=1, refresh=True)

    seconds = time.monotonic() - started
    where |= {"seconds": round(seconds), "waited": round((machine.waited() - waited) / seconds, 3)}
    found = Run(where, results, calls)
    report.show(console, found)
    folder = arguments.output / machine.slug(where)
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{str(where['date'])[:16].replace(':', '')}-{'full' if arguments.full else 'quick'}"
    files = [record.write(folder / f"{stem}.json", found), *plots.draw(folder, stem, found)]
    for file in files:
        console.print(f"wrote {file}", soft_wrap=True)
