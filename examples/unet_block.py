"""A residual block of a diffusion model's UNet: GroupNorm and SiLU, computed together, before each convolution.

``python -m examples.unet_block`` prints what autograd keeps of it for backward, beside the block with torch's GroupNorm
and SiLU.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

import normext

from .saved import saved_bytes

Norm = Callable[[int, int], nn.Module]


def separate(groups: int, channels: int) -> nn.Module:
    """Two layers of torch's in the place of one."""
    return nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU())


class UNetBlock(nn.Module):
    """Two convolutions, with the embedding of a time added between them, and the input added at the end.

    Args:
        channels: of the input.
        out_channels: of the output.
        embedding: the width of the time's embedding.
        groups: of the norms' channels.
        norm: makes a norm and the SiLU after it of a number of groups and one of channels.

    Shape:
        ``[batch, channels, height, width]`` and ``[batch, embedding]``; the output has ``out_channels``.
        channels_last, which convolutions like, is read and written as it lies.

    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding: int,
        groups: int = 32,
        norm: Norm = functools.partial(normext.GroupNorm, activation="silu"),  # noqa: B008
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(groups, channels), norm(groups, out_channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels))
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(self.norm1(x)) + self.time(time)[:, :, None, None]
        return self.skip(x) + self.conv2(self.norm2(y))


def main() -> None:
    """Prints the table."""
    torch.manual_seed(0)
    x, time = torch.randn(2, 128, 32, 32).to(memory_format=torch.channels_last), torch.randn(2, 256)
    print("kept for backward, of a UNet's block of 2 x 128 x 32 x 32")
    for name, block in (
        ("GroupNorm with SiLU", UNetBlock(128, 128, 256)),
        ("GroupNorm, then SiLU", UNetBlock(128, 128, 256, norm=separate)),
    ):
        print(f"{name:20} {saved_bytes(block, x, time) / 2**20:5.1f} MiB")


if __name__ == "__main__":
    main()
