"""Batches of 2 and of 64: how much of a sample's output is its neighbours', and what training makes of it.

``python -m examples.batch_size`` prints both for BatchNorm, LayerNorm and RMSNorm.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normext

Norm = Callable[[int], nn.Module]
NORMS: tuple[Norm, ...] = (normext.BatchNorm1d, normext.LayerNorm, normext.RMSNorm)
CLASSES, INPUTS, WIDTH = 10, 32, 64


def spread(norm: Norm, batch: int, draws: int = 64) -> float:
    """The standard deviation of one sample's output over draws of the others in its batch: 0 if it is its own alone."""
    generator = torch.Generator().manual_seed(0)
    layer, sample = norm(WIDTH), torch.randn(1, WIDTH, generator=generator)
    batches = [torch.cat([sample, torch.randn(batch - 1, WIDTH, generator=generator)]) for _ in range(draws)]
    return torch.stack([layer(x)[0] for x in batches]).std(0).mean().item()


def accuracy(norm: Norm, batch: int, samples: int = 2048) -> float:
    """Trains a small network on so many noisy samples; the share that it then gets right of new ones."""
    torch.manual_seed(0)
    centers = torch.randn(CLASSES, INPUTS)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        classes = torch.randint(CLASSES, (count,))
        return centers[classes] + 2 * torch.randn(count, INPUTS), classes

    network = nn.Sequential(
        nn.Linear(INPUTS, WIDTH), norm(WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, WIDTH), norm(WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, CLASSES),
    )  # fmt: skip
    optimizer = torch.optim.SGD(network.parameters(), lr=0.002 * batch)  # a sample counts as much in either batch
    for _ in range(samples // batch):
        x, classes = draw(batch)
        optimizer.zero_grad()
        F.cross_entropy(network(x), classes).backward()
        optimizer.step()
    x, classes = draw(4096)
    return (network.eval()(x).argmax(1) == classes).float().mean().item()


def main() -> None:
    """Prints the table."""
    print("             a sample's output spreads by   accuracy after training")
    print("batch of          2       64                  2       64")
    for norm in NORMS:
        spreads, accuracies = ([measure(norm, batch) for batch in (2, 64)] for measure in (spread, accuracy))
        name = getattr(norm, "__name__", "norm")
        print(f"{name:12} {spreads[0]:6.2f} {spreads[1]:8.2f} {accuracies[0]:18.0%} {accuracies[1]:8.0%}")


if __name__ == "__main__":
    main()
