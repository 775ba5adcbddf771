"""The plots: how many times as fast as each peer, by kind of case; bandwidth over row length and channel count."""

import itertools
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # before pyplot: no display is needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.peers import COMPILE, EAGER, NORMEXT, PEERS
from benchmarks.results import COPY, Result, Run, geometric_mean

NAMES = {
    "layer_norm": "LayerNorm",
    "rms_norm": "RMSNorm",
    "add_layer_norm": "residual + LayerNorm",
    "add_rms_norm": "residual + RMSNorm",
    "adaptive_layer_norm": "adaptive LayerNorm",
    "batch_norm": "BatchNorm",
    "group_norm": "GroupNorm",
    "group_norm + silu": "GroupNorm + SiLU",
    "instance_norm + leaky_relu": "InstanceNorm + LeakyReLU",
    "batch_norm + relu": "BatchNorm + ReLU",
    "batch_norm + add + relu": "BatchNorm + residual + ReLU",
}
SWEEPS = {  # the group of a norm that is over sizes, and what they are
    "layer_norm": ("row length", "row length (elements)"),
    "batch_norm": ("channel count", "channels"),
}
COLORS: dict[str, Any] = {NORMEXT: "#1261a0", EAGER: "#e4572e", COMPILE: "#f3a712", COPY: "#8a939b"}
OTHERS = [peer.name for peer in PEERS if peer.name not in COLORS]
COLORS |= {name: plt.get_cmap("Dark2")(index) for index, name in enumerate(OTHERS)}

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#b0b7bd",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ec",
    "grid.linewidth": 0.7,
    "xtick.color": "#4a5157",
    "ytick.color": "#4a5157",
    "figure.dpi": 130,
    "legend.frameon": False,
}


def _plain(value: float, _: int) -> str:
    """Ticks of logarithmic axes as people write them: 0.5, 1, 2, 64, 1k, 16k."""
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:.3g}"


def _rows(results: list[Result]) -> dict[str, list[Result]]:
    """Results by kind of case and layout, in the order of the run."""
    rows: dict[str, list[Result]] = {}
    for result in results:
        suffix = "\nchannels_last" if result.case.channels_last else ""
        rows.setdefault(result.case.group + suffix, []).append(result)
    return rows


def _bars(axes: Axes, rows: dict[str, list[Result]], labels: list[str], peers: list[str]) -> None:
    height = 0.8 / len(peers)
    for (number, label), (offset, peer) in itertools.product(enumerate(labels), enumerate(peers)):
        ratios = [result.speedup(peer) for result in rows.get(label, []) if peer in result.seconds]
        if not ratios:
            continue
        mean = geometric_mean(ratios)
        y = number + (offset - (len(peers) - 1) / 2) * height
        axes.barh(y, mean - 1, height * 0.9, left=1, color=COLORS[peer])  # from 1, where both are equally fast
        axes.annotate(
            f"{mean:.2g}" if mean < 10 else f"{mean:.0f}", (mean, y), (3 if mean >= 1 else -3, 0),
            textcoords="offset points", va="center", ha="left" if mean >= 1 else "right", fontsize=7, color="#4a5157",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.axvline(1, color=COLORS[NORMEXT], linewidth=1.5)
    axes.set_yticks(range(len(labels)), labels)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.15, y=0.02)


def _speedups(results: list[Result]) -> Figure:
    """Bars to the right of 1: normext is faster."""
    dtypes = list(dict.fromkeys(result.case.dtype_name for result in results))
    directions = list(dict.fromkeys(result.direction for result in results))
    peers = list(dict.fromkeys(peer for result in results for peer in result.peers))
    labels = list(_rows(results))
    figure, grid = plt.subplots(
        len(dtypes), len(directions), squeeze=False, sharex=True, sharey=True, layout="constrained",
        figsize=(1.8 + 2.3 * len(directions), 1.2 + len(dtypes) * (0.4 + 0.17 * len(labels) * (1 + len(peers)))),
    )  # fmt: skip
    for (row, dtype), (column, direction) in itertools.product(enumerate(dtypes), enumerate(directions)):
        members = [result for result in results if (result.case.dtype_name, result.direction) == (dtype, direction)]
        _bars(grid[row, column], _rows(members), labels, peers)
        grid[row, column].set_title(f"{direction}, {dtype}")
    grid[0, 0].invert_yaxis()
    for axes in grid[-1]:
        axes.set_xlabel("time of peer / time of normext")
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLORS[peer]) for peer in peers]
    figure.legend(handles, peers, loc="outside lower center", ncols=len(peers))
    return figure


def _bandwidth(results: list[Result], xlabel: str) -> Figure:
    """Lines under that of the copy, which is the roof."""
    dtypes = list(dict.fromkeys(result.case.dtype_name for result in results))
    directions = list(dict.fromkeys(result.direction for result in results))
    layouts = list(dict.fromkeys(result.case.layout for result in results))
    contenders = [COPY, *dict.fromkeys(name for result in results for name in result.quartiles if name != COPY)]
    columns = list(itertools.product(dtypes, directions))
    figure, grid = plt.subplots(
        len(layouts), len(columns), squeeze=False, sharex=True, sharey=True, layout="constrained",
        figsize=(1 + 2.5 * len(columns), 1.1 + 2.3 * len(layouts)),
    )  # fmt: skip
    for (row, layout), (column, (dtype, direction)) in itertools.product(enumerate(layouts), enumerate(columns)):
        axes = grid[row, column]
        for name in contenders:
            points = sorted(
                (result.case.shape[1], result.gigabytes_per_second(name))
                for result in results
                if name in result.quartiles
                and (result.case.layout, result.case.dtype_name, result.direction) == (layout, dtype, direction)
            )
            if points:
                style = {"linestyle": "--"} if name == COPY else {"marker": "o", "markersize": 3.5}
                axes.plot(*zip(*points, strict=True), color=COLORS[name], label=name, **style)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{direction}, {dtype}" + (f"\n{layout}" if len(layouts) > 1 else ""))
    grid[0, 0].set_ylim(bottom=0)  # of all, since they share it
    for axes in grid[-1]:
        axes.set_xlabel(xlabel)
    for axes in grid[:, 0]:
        axes.set_ylabel("bytes that must move / time (GB/s)")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2 * len(columns))
    return figure


def draw(folder: Path, stem: str, run: Run) -> list[Path]:
    """Draws what the run holds into folder, and returns the files."""
    files = []
    where = run.where
    hardware = f"{where['processor']}, {where['threads']} threads, {where['instruction_set']}"
    if "gpu" in where:
        hardware = f"{where['gpu']}, CUDA {where['cuda']}"
    with plt.rc_context(STYLE):
        for norm, name in NAMES.items():
            members = [result for result in run.results if result.case.norm == norm]
            if not members:
                continue
            sweep, xlabel = SWEEPS.get(norm, ("", ""))
            swept = [result for result in members if result.case.group == sweep]
            figures = {"speedup": _speedups(members)}
            if len({result.case.shape[1] for result in swept}) > 1:
                figures["bandwidth"] = _bandwidth(swept, xlabel)
            for kind, figure in figures.items():
                figure.suptitle(f"{name} on {hardware}, torch {where['torch']}", fontsize=10)
                files.append(folder / f"{stem}-{norm.replace(' + ', '-')}-{kind}.png")
                figure.savefig(files[-1])
                plt.close(figure)
    return files
