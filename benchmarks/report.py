"""The tables on the screen and the JSON beside them."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import timing, timing_cuda
from benchmarks.peers import EAGER, NORMEXT
from benchmarks.results import COPY, QUANTILES, Result, quantiles, summaries
from benchmarks.timing import Samples

WIDTH = 120

METHOD = {
    "cpu": (
        "All contenders of a case run in one process on the same tensors, interleaved: one sample each per round, the "
        f"order reversed from round to round, {timing.ROUNDS} rounds; a sample repeats its call for at least "
        f"{timing.SAMPLE_SECONDS * 1e3:g} ms, after one call that is not timed. "
        "Figures are medians. The allocator keeps freed memory in the "
        "process. The copy moves as many bytes as the case must move at least, in the same rounds."
    ),
    "cuda": (
        f"All contenders of a case run in one process on the same tensors, interleaved, {timing_cuda.ROUNDS} rounds, "
        "the order reversed from round to round. CUDA events around the replay of a CUDA graph of one call, "
        f"{timing_cuda.FLUSH_BYTES >> 20} MiB written before to flush L2. Figures are medians of kernel time; the "
        "host's cost of a call is measured apart. The copy moves as many bytes as the case must move at least."
    ),
}


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


def _call_table(calls: dict[str, Samples]) -> Table:
    table = _table("Call overhead, forward, on tiny float32 tensors", ["call"], ["normext", "torch", "torch / normext"])
    for label, samples in calls.items():
        medians = {name: quantiles(values)["median"] for name, values in samples.items()}
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


def show(console: Console, where: dict[str, object], results: list[Result], calls: dict[str, Samples]) -> None:
    """Prints the tables, and how to read them."""
    for norm, members in itertools.groupby(results, lambda result: result.case.norm):
        console.print(_case_table(norm, list(members)), "")
    console.print(_call_table(calls), "", _summary_table(results), "", sep="\n")
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


def _contenders(samples: Samples) -> dict[str, Any]:
    """Seconds per call, as the quantiles that the document names."""
    return {name: list(quantiles(values).values()) for name, values in samples.items()}


def write(path: Path, where: dict[str, object], results: list[Result], calls: dict[str, Samples]) -> Path:
    """Writes all there is to know about the run, and returns the path."""
    document = {
        "machine": where,
        "method": METHOD[str(where["device"])],
        "samples": timing_cuda.ROUNDS if where["device"] == "cuda" else timing.ROUNDS,
        "quantiles": list(QUANTILES),
        "summary": [
            {**vars(line), "over_eager": round(line.over_eager, 4), "over_best": round(line.over_best, 4)}
            for line in summaries(results)
        ],
        "cases": [
            {
                "norm": result.case.norm,
                "group": result.case.group,
                "shape": result.case.shape,
                "parameter_shape": result.case.parameter_shape,
                "layout": result.case.layout,
                "dtype": result.case.dtype_name,
                "direction": result.direction,
                "least_bytes": result.least_bytes,
                "gigabytes_per_second": round(result.gigabytes_per_second(NORMEXT), 2),
                "copy_gigabytes_per_second": round(result.gigabytes_per_second(COPY), 2),
                "of_copy": round(result.of_copy, 4),
                "speedup_over_eager": round(result.speedup(EAGER), 4),
                "best_peer": result.best_peer,
                "speedup_over_best_peer": round(result.speedup(result.best_peer), 4),
                "seconds": _contenders(result.samples),
                "skipped": result.skipped,
            }
            for result in results
        ],
        "call_overhead": {label: _contenders(samples) for label, samples in calls.items()},
    }
    text = json.dumps(document, indent=1)
    # the innermost objects and lists on one line each: a third of the size, and a case is read at a glance
    path.write_text(re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda inner: re.sub(r"\s+", " ", inner[0]), text) + "\n")
    return path
