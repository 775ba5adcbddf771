"""What synchronization costs: SyncBatchNorm in several processes beside BatchNorm in each, and an all_reduce alone.

    python -m benchmarks.synchronized [processes]

Times are of a training step of one norm, forward and backward, on shapes of ResNet-50. The table is printed, and all
figures are written to ``results/``. torch's SyncBatchNorm takes no tensors of the CPU.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

import normext
from benchmarks import machine, record
from benchmarks.__main__ import keep_freed_memory
from benchmarks.results import Quartiles, quartiles

SHAPES = ((16, 64, 56, 56), (16, 256, 28, 28), (16, 512, 14, 14), (16, 2048, 7, 7))
ROUNDS = 51
METHOD = (
    "a training step of one norm, float32, contiguous, in processes of one thread each over gloo; from a barrier to "
    f"the end of the slowest process; {ROUNDS} rounds in which the contenders take turns; an all_reduce of 2 C + 1 "
    "float64 numbers, twice, is what a step would communicate at the least"
)
Figures = list[tuple[tuple[int, ...], dict[str, Quartiles]]]  # by the shape of a process's part


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
    """What each process runs; the first leaves what was found in the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size, init_method=f"file://{folder}/store")
    found: Figures = []
    for shape in SHAPES:
        channels = shape[1]
        x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
        sums = torch.zeros(2 * channels + 1, dtype=torch.float64)
        calls: dict[str, Callable[[], None]] = {
            "BatchNorm": step(normext.BatchNorm2d(channels), x, grad),
            "SyncBatchNorm": step(normext.SyncBatchNorm(channels), x, grad),
            "two all_reduces": partial(all_reduce_twice, sums),
        }
        for call in calls.values():
            slowest(call)
        rounds = [{name: slowest(call) for name, call in calls.items()} for _ in range(ROUNDS)]
        found.append((shape, quartiles({name: [r[name] for r in rounds] for name in calls})))
    if rank == 0:
        torch.save(found, Path(folder) / "found")
    dist.destroy_process_group()


def show(found: Figures) -> None:
    """Prints a row for each shape: medians, in milliseconds."""
    print("| a process's part | BatchNorm, ms | SyncBatchNorm | synchronization | two all_reduces alone |")
    print("|---|---|---|---|---|")
    for shape, seconds in found:
        alone, synchronized, collectives = (1e3 * median for _, median, _ in seconds.values())
        times = (alone, synchronized, synchronized - alone, collectives)
        print(f"| {' x '.join(map(str, shape))} | " + " | ".join(f"{t:.2f}" for t in times) + " |")


def main() -> None:
    """Measures, prints the table, and writes the figures."""
    processes = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    where = machine.describe("cpu") | {"threads": 1, "processes": processes}
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure, (processes, folder), nprocs=processes)
        found: Figures = torch.load(Path(folder) / "found")
    runs = [{"shape": shape, "microseconds": record.microseconds(seconds)} for shape, seconds in found]
    written = {"machine": where, "method": METHOD, "figures": record.FIGURES, "runs": runs}
    folder_of_machine = Path(__file__).parent / "results" / machine.slug(where)
    folder_of_machine.mkdir(parents=True, exist_ok=True)
    path = folder_of_machine / f"{str(where['date'])[:16].replace(':', '')}-synchronized.json"
    path.write_text(record.document(written))
    show(found)
    print(f"wrote {path}")


if __name__ == "__main__":
    keep_freed_memory()
    main()
