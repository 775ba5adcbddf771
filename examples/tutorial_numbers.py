"""The numbers that tutorials print: BatchNorm is over a feature's samples, LayerNorm over a sample's features.

``python -m examples.tutorial_numbers`` prints the 3 x 4 tensors, normalized by either, and the statistics of a batch of
images.
"""

import torch
from torch import Tensor

import normext

SMALL = torch.tensor([[1.0, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]])
MIXED = torch.tensor([[1.0, 100, 5, 7], [10, 50, 6, 8], [3, 10, 7, 9]])


def by_column(x: Tensor) -> Tensor:
    """BatchNorm of samples ``[N, C]``, without weight and bias: each column has mean 0 and variance 1."""
    return normext.BatchNorm1d(x.shape[1], affine=False, device=x.device)(x)


def by_row(x: Tensor) -> Tensor:
    """LayerNorm of samples ``[N, C]``: each row has mean 0 and variance 1, whatever the other rows are."""
    return normext.LayerNorm(x.shape[1], elementwise_affine=False, device=x.device)(x)


def images() -> Tensor:
    """A batch of photographs' size, 32 x 3 x 224 x 224."""
    return torch.rand(32, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def main() -> None:
    """Prints it all."""
    torch.set_printoptions(precision=4, sci_mode=False)
    for x in (SMALL, MIXED):
        print(f"input\n{x}\nBatchNorm1d(4): by column\n{by_column(x)}\nLayerNorm(4): by row\n{by_row(x)}\n")
    x = images()
    print(f"images {list(x.shape)}: the dimensions that are averaged over, and how many means that leaves")
    for name, norm, dims in (
        ("BatchNorm2d(3)", normext.BatchNorm2d(3), (0, 2, 3)),
        ("LayerNorm([3, 224, 224])", normext.LayerNorm([3, 224, 224]), (1, 2, 3)),
        ("LayerNorm([224, 224])", normext.LayerNorm([224, 224]), (2, 3)),
    ):
        y = norm(x).detach()
        means, variances = y.mean(dims), y.var(dims, unbiased=False)
        print(
            f"{name:25} {dims!s:10} {means.numel():3}  "
            f"largest mean {means.abs().max():.1e}, variances {variances.min():.4f} to {variances.max():.4f}"
        )


if __name__ == "__main__":
    main()
