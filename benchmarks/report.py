"""The tables on the screen: of the run that was just made, or of one that was written.

python -m benchmarks.report FILE...  # a run's JSON: its tables, and its plots beside it
"""

import argparse
import itertools
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import plots, record
from benchmarks.peers import EAGER, NORMEXT
from benchmarks.results import Quartiles, Result, Run, summaries

WIDTH = 120


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def _size(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _ratio(ratio: float) -> str:
    """Red where a peer is faster by more than the 5% that separate identical code, green from twice as fast on."""
    text = f"{ratio:.2f}"
    return f"[red]{text}[/]" if ratio < 0.95 else f"[green]{text}[/]" if ratio >= 2 else text


def _table(title: str, left: list[str], right: list[str]) -> Table:
    """An empty table with text columns, then columns of figures."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _case_table(title: str, results: list[Result]) -> Table:
    """A section for each kind of case and layout."""
    table = _table(
        title, ["shape", "dtype", "direction"], ["normext", "must move", "GB/s", "of copy", "x eager", "x best"]
    )
    table.add_column("best peer", no_wrap=True)
    for (group, layout), members in itertools.groupby(results, lambda result: (result.case.group, result.case.layout)):
        table.add_section()
        table.add_row(f"[bold]{group}[/]{', channels_last' if layout == 'channels_last' else ''}")
        for result in members:
            table.add_row(
                escape(result.case.label),
                result.case.dtype_name,
                result.direction,
                _time(result.seconds[NORMEXT]),
                _size(result.least_bytes),
                f"{result.gigabytes_per_second(NORMEXT):.1f}",
                f"{result.of_copy:.0%}",
                _ratio(result.speedup(EAGER)),
                _ratio(result.speedup(result.best_peer)),
                result.best_peer,
            )
    return table


def _call_table(calls: dict[str, dict[str, Quartiles]]) -> Table:
    table = _table("Call overhead, forward, on tiny float32 tensors", ["call"], ["normext", "torch", "torch / normext"])
    for label, quartiles in calls.items():
        medians = {name: median for name, (_, median, _) in quartiles.items()}
        ratio = medians[EAGER] / medians[NORMEXT]
        table.add_row(label, _time(medians[NORMEXT]), _time(medians[EAGER]), _ratio(ratio))
    return table


def _summary_table(results: list[Result]) -> Table:
    table = _table("Speed-up, geometric means", ["part"], ["cases", "over eager", "over best peer", "a peer is faster"])
    for line in summaries(results):
        table.add_row(
            line.part, str(line.cases), _ratio(line.over_eager), _ratio(line.over_best), f"{line.slower or '-'}"
        )
    return table


def show(console: Console, run: Run) -> None:
    """Prints the tables, and how to read them."""
    where = run.where
    for norm, members in itertools.groupby(run.results, lambda result: result.case.norm):
        console.print(_case_table(norm, list(members)), "")
    console.print(_call_table(run.calls), "", _summary_table(run.results), "", sep="\n")
    console.print(
        "of copy: normext's share of the bandwidth of copying as many bytes in the same rounds. x: the peer's time "
        "over normext's, above 1 normext is faster. A peer is faster: by more than 5%."
    )
    console.print(
        f"{where.get('gpu', where['processor'])}, {where['threads']} threads, {where['instruction_set']}, "
        f"torch {where['torch']}, normext {where['normext']}, {where['seconds']} s"
    )
    if float(str(where["waited"])) > 0.05:
        console.print(f"The machine was busy: a core was waited for {where['waited']:.0%} of the time.", style="red")


def main() -> None:
    """Prints the tables of runs that were written, and draws their plots beside them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=main.__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="such as benchmarks/results/*/*-full.json")
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for path in parser.parse_args().files:
        run = record.read(path)
        show(console, run)
        for plot in plots.draw(path.parent, path.stem, run):
            console.print(f"wrote {plot}", soft_wrap=True)


if __name__ == "__main__":
    main()
