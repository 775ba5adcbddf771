"""Gradients through 50 layers: no norm, BatchNorm, LayerNorm, RMSNorm, GroupNorm, before and after the activation.

``python -m examples.gradient_flow`` prints the gradients of the first layer's weight over the last one's and, where
matplotlib is installed, draws all of them into gradient_flow.png.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import normext

NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "BatchNorm": normext.BatchNorm1d,
    "LayerNorm": normext.LayerNorm,
    "RMSNorm": normext.RMSNorm,
    "GroupNorm": functools.partial(normext.GroupNorm, 8),
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
PLACES = ("before", "after")  # the activation


def network(norm: str, activation: str, place: str, depth: int, width: int) -> nn.Sequential:
    """Linear layers as torch initializes them, each with its norm before or after its activation."""
    layers = []
    for _ in range(depth):
        make = NORMS[norm]
        parts = [make(width)] if make else []
        parts.insert(0 if place == "after" else len(parts), ACTIVATIONS[activation]())
        layers.append(nn.Sequential(nn.Linear(width, width), *parts))
    return nn.Sequential(*layers)


def gradients(norm: str, activation: str, place: str, depth: int = 50, width: int = 128) -> list[float]:
    """The norms of the gradients of the layers' weights, over the last one's, for a random gradient at the end."""
    torch.manual_seed(0)
    layers = network(norm, activation, place, depth, width)
    output = layers(torch.randn(64, width))
    weights = [module.weight for module in layers.modules() if isinstance(module, nn.Linear)]
    sizes = [gradient.norm().item() for gradient in torch.autograd.grad(output, weights, torch.randn_like(output))]
    return [size / sizes[-1] for size in sizes]


def draw(found: dict[tuple[str, str, str], list[float]], path: Path) -> None:
    """A line for each norm, over the layers, in a field for each place and activation."""
    import matplotlib

    matplotlib.use("agg")  # no display is needed
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(2, 2, sharex=True, sharey=True, figsize=(8, 5.5), dpi=110, layout="constrained")
    for axes, (activation, place) in zip(grid.flat, [(a, p) for p in PLACES for a in ACTIVATIONS], strict=True):
        for norm in NORMS:
            sizes = found[norm, activation, place]
            axes.plot(range(1, len(sizes) + 1), sizes, label=norm, linewidth=1.5)
        axes.set_yscale("log")
        axes.set_ylim(1e-8, 1e6)
        axes.set_title(f"norm {place} {activation}", fontsize=10)
        axes.grid(color="#e6e9ec")
    for axes in grid[-1]:
        axes.set_xlabel("layer")
    figure.supylabel("gradient of the weight, over the last layer's", fontsize=10)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(NORMS), frameon=False)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Prints the ends, and draws what lies between."""
    parser = argparse.ArgumentParser(prog="python -m examples.gradient_flow")
    parser.add_argument("--output", type=Path, default=Path("gradient_flow.png"), help="where the plot goes")
    arguments = parser.parse_args()
    found = {(n, a, p): gradients(n, a, p) for n in NORMS for a in ACTIVATIONS for p in PLACES}
    print("gradient of the first layer's weight, over the last one's")
    for (norm, activation, place), sizes in found.items():
        print(f"{norm:10} {place:6} {activation}  {sizes[0]:.1e}")
    try:
        draw(found, arguments.output)
        print(f"wrote {arguments.output}")
    except ImportError as error:
        print(f"no plot: {error}")


if __name__ == "__main__":
    main()
