"""What was found: the quartiles of a case's samples, and the figures derived from them."""

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from benchmarks.cases import Case
from benchmarks.peers import EAGER, NORMEXT
from benchmarks.timing import Samples

COPY = "copy"
Quartiles = tuple[float, float, float]  # the median in the middle


def digits(value: float) -> float:
    """The value as it is kept, to 5 digits."""
    return float(f"{value:.5g}")


def quartiles(samples: Samples) -> dict[str, Quartiles]:
    """What is kept of each contender's samples."""
    found = {}
    for name, values in samples.items():
        first, median, third = map(digits, np.quantile(values, [0.25, 0.5, 0.75]))
        found[name] = (first, median, third)
    return found


@dataclass
class Result:
    """One case in one direction.

    Attributes:
        case: what was measured.
        direction: one of the case's.
        quartiles: of the seconds per call, by contender; copying the least bytes is one of them.
        skipped: contenders that could not run the case, and why.

    """

    case: Case
    direction: str
    quartiles: dict[str, Quartiles]
    skipped: dict[str, str] = field(default_factory=dict)

    @cached_property
    def seconds(self) -> dict[str, float]:
        """The median of each contender."""
        return {name: median for name, (_, median, _) in self.quartiles.items()}

    @property
    def least_bytes(self) -> int:
        """The bytes that must move."""
        return self.case.least_bytes(self.direction)

    @property
    def peers(self) -> list[str]:
        """Who ran beside normext."""
        return [name for name in self.quartiles if name not in (NORMEXT, COPY)]

    @property
    def best_peer(self) -> str:
        """The fastest of them."""
        return min(self.peers, key=lambda name: self.seconds[name])

    def gigabytes_per_second(self, contender: str) -> float:
        """The bytes that must move over the time taken."""
        return self.least_bytes / self.seconds[contender] / 1e9

    @property
    def of_copy(self) -> float:
        """Normext's share of the bandwidth of copying as many bytes: 1 is the speed of memory, or of the cache."""
        return self.seconds[COPY] / self.seconds[NORMEXT]

    def speedup(self, peer: str) -> float:
        """How many times as fast as the peer normext is."""
        return self.seconds[peer] / self.seconds[NORMEXT]


@dataclass
class Run:
    """All that a run has found.

    Attributes:
        where: machine, versions and commit, as ``machine.describe`` has them, and how long it took.
        results: those of all cases.
        calls: quartiles of the seconds of a call on a tiny tensor, by call and contender.

    """

    where: dict[str, object]
    results: list[Result]
    calls: dict[str, dict[str, Quartiles]]


def geometric_mean(values: Iterable[float]) -> float:
    """The mean for ratios: being twice as fast here and half as fast there is 1."""
    return math.exp(statistics.fmean(map(math.log, values)))


@dataclass
class Summary:
    """Geometric means over some of the results.

    Attributes:
        part: which results.
        cases: how many.
        over_eager: speed-up over torch eager.
        over_best: speed-up over the fastest peer of each case.
        slower: how many cases a peer is faster in, by more than the 5% that separate identical code.

    """

    part: str
    cases: int
    over_eager: float
    over_best: float
    slower: int


def summaries(results: list[Result]) -> list[Summary]:
    """Overall, and by norm, dtype, direction, layout and group."""
    parts: dict[str, list[Result]] = {"overall": results}
    keys: list[Callable[[Result], str]] = [
        lambda result: result.case.norm,
        lambda result: result.case.dtype_name,
        lambda result: result.direction,
        lambda result: f"{result.case.norm}, {result.case.layout}",
        lambda result: f"{result.case.norm}, {result.case.group}",
    ]
    for key in keys:
        for result in results:
            parts.setdefault(key(result), []).append(result)
    return [
        Summary(
            part,
            len(members),
            geometric_mean(result.speedup(EAGER) for result in members),
            geometric_mean(result.speedup(result.best_peer) for result in members),
            sum(result.speedup(result.best_peer) < 0.95 for result in members),
        )
        for part, members in parts.items()
    ]
