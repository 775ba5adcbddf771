"""What was found: the samples of a case, and the figures derived from them."""

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
QUANTILES = {"min": 0.0, "q10": 0.1, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9, "max": 1.0}


def quantiles(samples: list[float]) -> dict[str, float]:
    """The quantiles that are kept of a contender's samples, to 5 digits."""
    values = np.quantile(samples, list(QUANTILES.values()))
    return {name: float(f"{value:.5g}") for name, value in zip(QUANTILES, values, strict=True)}


@dataclass
class Result:
    """One case in one direction.

    Attributes:
        case: what was measured.
        direction: one of the case's.
        samples: seconds per call, by contender; copying the least bytes is one of them.
        skipped: contenders that could not run the case, and why.

    """

    case: Case
    direction: str
    samples: Samples
    skipped: dict[str, str] = field(default_factory=dict)

    @cached_property
    def seconds(self) -> dict[str, float]:
        """The median of each contender."""
        return {name: statistics.median(samples) for name, samples in self.samples.items()}

    @property
    def least_bytes(self) -> int:
        """The bytes that must move."""
        return self.case.least_bytes(self.direction)

    @property
    def peers(self) -> list[str]:
        """Who ran beside normext."""
        return [name for name in self.samples if name not in (NORMEXT, COPY)]

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
