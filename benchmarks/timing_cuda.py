"""How kernels are timed on a GPU, after triton.testing.do_bench: CUDA events around a graph replay, L2 flushed before.

What a call costs the host is no part of these times: overhead.py measures it.
"""

import torch

from benchmarks.results import COPY
from benchmarks.timing import Call, Samples, alternating

FLUSH_BYTES = 256 << 20  # more than any L2
ROUNDS = 31


def use_own_stream() -> None:
    """Leaves the default stream, which cannot be captured. Backward passes run on the stream of their forward pass,
    so this comes before any contender is built.
    """
    torch.cuda.set_stream(torch.cuda.Stream())


def _captured(call: Call) -> Call:
    """The call as a CUDA graph, or as it is where it cannot be captured."""
    for _ in range(3):  # compiles, allocates workspaces
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            call()
    except RuntimeError:
        return call
    return graph.replay


def interleaved(contenders: dict[str, Call]) -> Samples:
    """Seconds of GPU time per call of each contender, one sample a round."""
    # A copy in a graph is no kernel, and at times a third slower than the same copy outside of one.
    calls = {name: call if name == COPY else _captured(call) for name, call in contenders.items()}
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    for names in alternating(list(calls), ROUNDS):
        for name in names:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()
            start.record()
            calls[name]()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) / 1e3 for start, end in pairs] for name, pairs in events.items()}
