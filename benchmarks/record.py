"""The file of a run: where and how it was measured, then a line a case. It is all that tables and plots need."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import timing, timing_cuda
from benchmarks.cases import Case
from benchmarks.results import COPY, Quartiles, Result, Run, digits

METHOD = {
    "cpu": (
        "All contenders of a case run in one process on the same tensors, interleaved: one sample each per round, the "
        f"order reversed from round to round, {timing.ROUNDS} rounds, or {timing.FEWEST_ROUNDS} and as many as end in "
        f"{timing.LONG_SECONDS:g} s; a sample repeats its call for at least "
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
FIGURES = "microseconds of a call, or a step: lower quartile, median, upper quartile"


def microseconds(quartiles: Mapping[str, Quartiles]) -> dict[str, list[float]]:
    """The quartiles by contender, as they are written."""
    return {name: [digits(seconds * 1e6) for seconds in values] for name, values in quartiles.items()}


def _quartiles(written: dict[str, list[float]]) -> dict[str, Quartiles]:
    """What ``microseconds`` was given."""
    return {name: (first / 1e6, median / 1e6, third / 1e6) for name, (first, median, third) in written.items()}


def _written(result: Result) -> dict[str, Any]:
    """A case's line."""
    case = result.case
    line = {
        "norm": case.norm,
        "group": case.group,
        "shape": case.shape,
        "normalized": case.normalized,
        "layout": case.layout,
        "dtype": case.dtype_name,
        "direction": result.direction,
        "least_bytes": result.least_bytes,
        "microseconds": microseconds(result.quartiles),
    }
    return line | ({"skipped": result.skipped} if result.skipped else {})


def _result(line: dict[str, Any]) -> Result:
    """The result that a case's line was written of."""
    case = Case(
        line["norm"],
        line["group"],
        tuple(line["shape"]),
        dtype=getattr(torch, line["dtype"]),
        normalized=line["normalized"],
        channels_last=line["layout"] == "channels_last",
    )
    return Result(case, line["direction"], _quartiles(line["microseconds"]), line.get("skipped", {}))


def document(parts: Mapping[str, object]) -> str:
    """The parts as JSON, a line each, and a line for each element of those that are lists."""

    def text(part: object) -> str:
        if not isinstance(part, list):
            return json.dumps(part)
        return "[" + ",".join(f"\n  {json.dumps(element)}" for element in part) + "\n ]"

    return "{" + ",".join(f"\n {json.dumps(name)}: {text(part)}" for name, part in parts.items()) + "\n}\n"


def write(path: Path, run: Run) -> Path:
    """Writes the run, and returns the path."""
    largest = max(run.results, key=lambda result: result.least_bytes)
    parts = {
        "machine": run.where,
        "method": METHOD[str(run.where["device"])],
        "figures": FIGURES,
        "copy": {
            "bytes": largest.least_bytes,
            "gigabytes_per_second": digits(largest.gigabytes_per_second(COPY)),
        },
        "cases": [_written(result) for result in run.results],
        "calls": [{"call": label, "microseconds": microseconds(calls)} for label, calls in run.calls.items()],
    }
    path.write_text(document(parts))
    return path


def read(path: Path) -> Run:
    """The run that was written there."""
    parts = json.loads(path.read_text())
    calls = {line["call"]: _quartiles(line["microseconds"]) for line in parts["calls"]}
    return Run(parts["machine"], [_result(line) for line in parts["cases"]], calls)
