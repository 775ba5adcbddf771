"""Networks as people train them, of torch's modules alone: what `python -m benchmarks.training` takes steps of."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """He et al., "Deep Residual Learning for Image Recognition", 2016, figure 5, with the stride in the middle."""

    def __init__(self, norm: type[nn.Module], inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), norm(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False), norm(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, outputs, 1, bias=False), norm(outputs),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet50(norm: type[nn.Module] = nn.BatchNorm2d, classes: int = 100) -> nn.Module:
    """The network of the paper's table 1, with that norm in all its 53 places."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), norm(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)
    ]  # fmt: skip
    inputs = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(norm, inputs, width, stride if block == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class ChannelsNorm(nn.Module):
    """LayerNorm over the channels of images, between two permutations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Liu et al., "A ConvNet for the 2020s", 2022, figure 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.narrow(F.gelu(self.wide(y)))).permute(0, 3, 1, 2)


def convnext(widths: tuple[int, ...], depths: tuple[int, ...]) -> nn.Module:
    """The network, of stages so wide and deep."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 4), ChannelsNorm(widths[0])]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if stage:
            layers += [ChannelsNorm(widths[stage - 1]), nn.Conv2d(widths[stage - 1], width, 2, 2)]
        layers += [ConvNeXtBlock(width) for _ in range(depth)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(width), nn.Linear(width, 100))


class VisionTransformer(nn.Module):
    """Patches of 16 x 16, torch's encoder with its norms first, the mean of the tokens."""

    def __init__(self, width: int, depth: int, tokens: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        layer = nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 100)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT + self.position
        return self.head(self.encoder(tokens).mean(1))


class RMSNorm(nn.Module):
    """As models of language have it, written out: torch's operators know nothing of a norm here."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class LlamaBlock(nn.Module):
    """Attention, without a position, and a gated layer, each behind an RMSNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.before_attention, self.before_gate = RMSNorm(width), RMSNorm(width)
        self.attention, self.projection = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        inner = 8 * width // 3 // 64 * 64
        self.gate, self.narrow = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        three = self.attention(self.before_attention(x)).unflatten(-1, (3, self.heads, 64)).movedim(1, 3)
        query, key, value = three.unbind(1)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.projection(y.transpose(1, 2).flatten(2))
        gate, up = self.gate(self.before_gate(x)).chunk(2, -1)
        return x + self.narrow(F.silu(gate) * up)


def llama(width: int, depth: int) -> nn.Module:
    """The blocks, of tokens that have been embedded."""
    return nn.Sequential(*(LlamaBlock(width) for _ in range(depth)), RMSNorm(width))


class ResidualBlock(nn.Module):
    """Of a diffusion model's UNet: twice GroupNorm, SiLU and a convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(32, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.GroupNorm(32, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class Levels(nn.Module):
    """A U of levels: each has a way down, its inner levels at half the size, and a way up over both."""

    def __init__(self, down: nn.Module, inner: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.down, self.inner, self.up = down, inner, up

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        smaller = F.interpolate(x, scale_factor=0.5)
        return self.up(torch.cat([x, F.interpolate(self.inner(smaller), scale_factor=2.0)], 1))


def unet(widths: tuple[int, ...]) -> nn.Module:
    """Of residual blocks, two down and two up a level."""
    levels: nn.Module = ResidualBlock(widths[-2], widths[-1])
    for level in reversed(range(len(widths) - 1)):
        width, above = widths[level], widths[max(level - 1, 0)]
        down = nn.Sequential(ResidualBlock(above, width), ResidualBlock(width, width))
        up = nn.Sequential(ResidualBlock(width + widths[level + 1], width), ResidualBlock(width, width))
        levels = Levels(down, levels, up)
    ends = nn.Conv2d(4, widths[0], 3, padding=1), nn.Conv2d(widths[0], 4, 3, padding=1)
    return nn.Sequential(ends[0], levels, nn.GroupNorm(32, widths[0]), nn.SiLU(), ends[1])


def convolutions(inputs: int, width: int) -> nn.Module:
    """Isensee et al., "nnU-Net", 2021: twice a convolution, InstanceNorm and LeakyReLU."""
    return nn.Sequential(
        nn.Conv3d(inputs, width, 3, padding=1), nn.InstanceNorm3d(width, affine=True), nn.LeakyReLU(0.01),
        nn.Conv3d(width, width, 3, padding=1), nn.InstanceNorm3d(width, affine=True), nn.LeakyReLU(0.01),
    )  # fmt: skip


def nnunet(widths: tuple[int, ...]) -> nn.Module:
    """Of two convolutions down and two up a level, over volumes of one channel."""
    levels: nn.Module = convolutions(widths[-2], widths[-1])
    for level in reversed(range(len(widths) - 1)):
        width = widths[level]
        down = convolutions(widths[level - 1] if level else 1, width)
        levels = Levels(down, levels, convolutions(width + widths[level + 1], width))
    return nn.Sequential(levels, nn.Conv3d(widths[0], 3, 1))


@dataclass(frozen=True)
class Network:
    """A network and the shape of a batch, of a size for a processor's cores and one for a GPU."""

    name: str
    make: dict[str, Callable[[], nn.Module]]
    shape: dict[str, tuple[int, ...]]


NETWORKS = [
    Network("ResNet-50", {"cpu": resnet50, "cuda": resnet50}, {"cpu": (8, 3, 96, 96), "cuda": (128, 3, 224, 224)}),
    Network(
        "ConvNeXt",
        {
            "cpu": lambda: convnext((40, 80, 160, 320), (2, 2, 6, 2)),
            "cuda": lambda: convnext((96, 192, 384, 768), (3, 3, 9, 3)),
        },
        {"cpu": (8, 3, 128, 128), "cuda": (64, 3, 224, 224)},
    ),
    Network(
        "ViT",
        {"cpu": lambda: VisionTransformer(192, 6, 64), "cuda": lambda: VisionTransformer(768, 12, 196)},
        {"cpu": (8, 3, 128, 128), "cuda": (64, 3, 224, 224)},
    ),
    Network(
        "Llama", {"cpu": lambda: llama(256, 4), "cuda": lambda: llama(2048, 8)},
        {"cpu": (4, 256, 256), "cuda": (4, 2048, 2048)},
    ),
    Network(
        "UNet", {"cpu": lambda: unet((32, 64, 96)), "cuda": lambda: unet((320, 640, 1280))},
        {"cpu": (2, 4, 48, 48), "cuda": (8, 4, 64, 64)},
    ),
    Network(
        "nnU-Net", {"cpu": lambda: nnunet((8, 16, 32)), "cuda": lambda: nnunet((32, 64, 128, 256))},
        {"cpu": (1, 1, 48, 48, 48), "cuda": (2, 1, 128, 128, 128)},
    ),
]  # fmt: skip
