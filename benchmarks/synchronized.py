"""What synchronization costs: SyncBatchNorm in several processes beside BatchNorm in each, and an all_reduce alone.

    python -m benchmarks.synchronized [processes]

Each process has one thread and half of ResNet-50's batch of 32; times are of a training step of one norm, forward and
backward, from a barrier of all processes to the end of the slowest: medians of rounds that take turns. torch's
SyncBatchNorm takes no tensors of the CPU.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

import normext

SHAPES = ((16, 64, 56, 56), (16, 256, 28, 28), (16, 512, 14, 14), (16, 2048, 7, 7))
ROUNDS = 21


def step(norm: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    """A call that runs forward and backward once."""

    def run() -> None:
        x.grad = None
        norm(x).backward(grad)

    return run


def all_reduce_twice(sums: Tensor) -> None:
    """As often as a training step communicates."""
    for _ in range(2):
        dist.all_reduce(sums)


def slowest(run: Callable[[], None]) -> float:
    """Seconds that the slowest process takes."""
    dist.barrier()
    start = time.perf_counter()
    run()
    seconds = torch.tensor(time.perf_counter() - start)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return seconds.item()


def measure(rank: int, size: int, folder: str) -> None:
    """Prints, in process 0, a row for each shape."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size, init_method=f"file://{folder}/store")
    if rank == 0:
        print("| shape of a process's part | BatchNorm, ms | SyncBatchNorm | synchronization | two all_reduces alone |")
        print("|---|---|---|---|---|")
    for shape in SHAPES:
        channels = shape[1]
        x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
        sums = torch.zeros(2 * channels + 1, dtype=torch.float64)
        calls: dict[str, Callable[[], None]] = {
            "alone": step(normext.BatchNorm2d(channels), x, grad),
            "synchronized": step(normext.SyncBatchNorm(channels), x, grad),
            "all_reduce": partial(all_reduce_twice, sums),
        }
        for call in calls.values():
            slowest(call)
        rounds = [{name: slowest(call) for name, call in calls.items()} for _ in range(ROUNDS)]
        alone, synchronized, collectives = (1e3 * statistics.median(r[name] for r in rounds) for name in calls)
        if rank == 0:
            times = (alone, synchronized, synchronized - alone, collectives)
            print(f"| {' x '.join(map(str, shape))} | " + " | ".join(f"{t:.2f}" for t in times) + " |")
    dist.destroy_process_group()


if __name__ == "__main__":
    processes = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure, (processes, folder), nprocs=processes)
