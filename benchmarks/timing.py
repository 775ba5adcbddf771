"""How calls are timed on the CPU: interleaved, so that whatever disturbs the machine disturbs all contenders alike."""

import gc
import itertools
import time
from collections.abc import Callable

Call = Callable[[], object]
Samples = dict[str, list[float]]

ROUNDS, FEWEST_ROUNDS = 15, 5
LONG_SECONDS = 20.0  # after so many no further round begins
SAMPLE_SECONDS = 3e-3  # a sample repeats its call until it lasts this long


def _sample(call: Call, loops: int) -> float:
    """Seconds per call."""
    # Not timed: it brings back into the cache what the contender before has evicted. Without it a call of 2.2 ms, made
    # once in a sample, read 3.4.
    call()
    start = time.perf_counter()
    for _ in itertools.repeat(None, loops):
        call()
    return (time.perf_counter() - start) / loops


def _loops(call: Call) -> int:
    """How often to repeat a call in a sample. The calls made on the way warm up allocator and threads."""
    loops = 1
    while (seconds := _sample(call, loops) * loops) < SAMPLE_SECONDS:
        loops = max(2 * loops, int(loops * SAMPLE_SECONDS / seconds))
    return loops


def alternating(names: list[str], rounds: int) -> list[list[str]]:
    """The order of each round: forwards, then backwards, so that nobody always runs behind the same neighbour."""
    return [names[:: 1 if number % 2 == 0 else -1] for number in range(rounds)]


def interleaved(contenders: dict[str, Call]) -> Samples:
    """Seconds per call of each contender, one sample a round; fewer rounds where calls take seconds."""
    loops = {name: _loops(call) for name, call in contenders.items()}
    samples: Samples = {name: [] for name in contenders}
    gc.collect()
    gc.disable()  # a collection would land in somebody's sample
    try:
        start = time.perf_counter()
        for number, names in enumerate(alternating(list(contenders), ROUNDS)):
            if number >= FEWEST_ROUNDS and time.perf_counter() - start > LONG_SECONDS:
                break
            for name in names:
                samples[name].append(_sample(contenders[name], loops[name]))
    finally:
        gc.enable()
    return samples
