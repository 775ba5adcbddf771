"""What a step of training takes: by torch, under enable(), after convert(), and after convert(fuse=True).

    python -m benchmarks.training  # on the CPU, some minutes; with --device cuda on a GPU

Forward, backward and SGD of the networks in models.py, in eager mode and under torch.compile, where enable() has no
effect. All ways of a mode are in one process, each with a copy of the network, and take their steps in turn.
"""

import argparse
import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import normext
from benchmarks import machine, record
from benchmarks.__main__ import keep_freed_memory
from benchmarks.models import NETWORKS, Network
from benchmarks.results import Quartiles, quartiles
from benchmarks.timing import alternating

TORCH, ENABLE, CONVERT, FUSE = "torch", "enable()", "convert()", "convert(fuse=True)"
WAYS = {"eager": (TORCH, ENABLE, CONVERT, FUSE), "compile": (TORCH, CONVERT, FUSE)}
WARMUP, ROUNDS = 2, 15
SECONDS = 8.0  # for all ways of a network and mode, after which no further round begins; there are three at least


def way_of(name: str, network: nn.Module, mode: str) -> Callable[[Tensor], Tensor]:
    """A copy of the network as that way has it."""
    model = copy.deepcopy(network)
    if name in (CONVERT, FUSE):
        normext.convert(model, fuse=name == FUSE)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    function = torch.compile(model) if mode == "compile" else model

    def step(x: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=x.is_cuda):
            loss = function(x).float().square().mean()  # type: ignore[operator]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def timed(step: Callable[[Tensor], Tensor], x: Tensor, name: str) -> float:
    """Seconds of a step."""
    with normext.enabled() if name == ENABLE else contextlib.nullcontext():
        wait(x)
        start = time.perf_counter()
        step(x)
        wait(x)
        return time.perf_counter() - start


def wait(x: Tensor) -> None:
    """For what a GPU has been given."""
    if x.is_cuda:
        torch.cuda.synchronize()


def measure(network: Network, mode: str, device: str) -> dict[str, Quartiles]:
    """Quartiles of the seconds of a step, by way."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, x = network.make[device]().to(device), torch.randn(network.shape[device], device=device)
    if x.is_cuda and x.dim() == 4:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ways = {name: way_of(name, model, mode) for name in WAYS[mode]}
    for name, step in ways.items():
        for _ in range(WARMUP):
            timed(step, x, name)
    samples: dict[str, list[float]] = {name: [] for name in ways}
    start = time.perf_counter()
    for number, names in enumerate(alternating(list(ways), ROUNDS)):
        if number >= 3 and time.perf_counter() - start > SECONDS:
            break
        for name in names:
            samples[name].append(timed(ways[name], x, name))
    return quartiles(samples)


Found = dict[tuple[str, str], dict[str, Quartiles]]  # by network and mode


def shown(found: Found) -> Table:
    """Milliseconds of torch, and the time of torch over that of each way."""
    table = Table("network", "mode", "torch, ms", *(f"torch / {name}" for name in WAYS["eager"][1:]))
    for (network, mode), steps in found.items():
        cells = [ratio(steps, name) for name in WAYS["eager"][1:]]
        table.add_row(network, mode, f"{steps[TORCH][1] * 1e3:.1f}", *cells)
    return table


def ratio(steps: dict[str, Quartiles], name: str) -> str:
    """The time of torch over that way's."""
    return f"{steps[TORCH][1] / steps[name][1]:.2f}" if name in steps else "-"


def rows(found: Found) -> Iterator[str]:
    """The README's table: a column a network."""
    networks = list(dict.fromkeys(network for network, _ in found))
    yield f"| | {' | '.join(networks)} |"
    yield "|---" * (len(networks) + 1) + "|"
    for mode, name in (("eager", ENABLE), ("eager", CONVERT), ("eager", FUSE), ("compile", FUSE)):
        cells = (ratio(found[network, mode], name) if (network, mode) in found else "-" for network in networks)
        yield f"| `{name}`{', compiled' if mode == 'compile' else ''} | {' | '.join(cells)} |"


def main() -> None:
    """Measures, prints the tables, and writes the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--mode", choices=list(WAYS), nargs="+", default=list(WAYS))
    parser.add_argument("--network", choices=[n.name for n in NETWORKS], nargs="+", default=[n.name for n in NETWORKS])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    where, began, waited = machine.describe(arguments.device), time.perf_counter(), machine.waited()
    folder = arguments.output / machine.slug(where)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{str(where['date'])[:16].replace(':', '')}-training.json"
    method = f"forward, backward and SGD; up to {ROUNDS} rounds, of a step each way, or as many as {SECONDS:g} s take"
    console = Console(width=110)
    found: Found = {}
    runs = []
    for network in NETWORKS:
        for mode in arguments.mode if network.name in arguments.network else ():
            figures = found[network.name, mode] = measure(network, mode, arguments.device)
            steps = record.microseconds(figures)
            runs.append(
                {"network": network.name, "mode": mode, "batch": network.shape[arguments.device], "microseconds": steps}
            )
            where |= {"seconds": round(time.perf_counter() - began), "waited": round(machine.waited() - waited, 2)}
            written = {"machine": where, "method": method, "figures": record.FIGURES, "runs": runs}
            path.write_text(record.document(written))
            console.print(network.name, mode, *(f"{way} {s[1] * 1e3:.1f} ms" for way, s in figures.items()), sep=", ")
    console.print(shown(found))
    console.print("\n".join(rows(found)), f"wrote {path}", sep="\n", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    keep_freed_memory()
    main()
