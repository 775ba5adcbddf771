"""What is measured: the shapes people use, in each dtype, layout and direction, and the bytes each must move."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

EPS, MOMENTUM = 1e-5, 0.1

# forward and backward are the two halves of a training step, both is the step; evaluation is a forward without
# gradients that uses BatchNorm's running statistics. (Row norms compute the same in training and evaluation.)
TRAINING = ("forward", "backward", "both")
ALL = (*TRAINING, "evaluation")
SWEEP = ("forward", "backward")

# channels and side of every BatchNorm's input in ResNet-50, for images of 224x224
RESNET50 = ((64, 112), (64, 56), (256, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (512, 7), (2048, 7))
# and of GroupNorm's in the UNet of Stable Diffusion, for images of 512x512
STABLE_DIFFUSION = ((320, 64), (640, 32), (1280, 16), (1280, 8), (2560, 8), (960, 64))
GROUPS = 32


@dataclass(frozen=True)
class Case:
    """One norm over one tensor, in several directions.

    Attributes:
        norm: the name of a function of normext's, and of what a channel norm has fused with it: "group_norm + silu".
        group: what kind of shape this is; plots and sections of the table go by it.
        shape: the input's.
        dtype: the input's.
        normalized: row norms normalize over this many trailing dimensions.
        channels_last: the input's memory format.
        strided: the input is a part of rows three times as long, as queries are in a fused projection.
        directions: those that are timed.
        quick: part of the quick run.
        compiled: torch.compile takes part in the quick run too. It compiles for seconds, so few cases of it do.

    """

    norm: str
    group: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    normalized: int = 1
    channels_last: bool = False
    strided: bool = False
    directions: tuple[str, ...] = TRAINING
    quick: bool = False
    compiled: bool = False

    @property
    def is_row(self) -> bool:
        """Whether the norm is over the last dimensions."""
        return "layer_norm" in self.norm or "rms_norm" in self.norm

    @property
    def has_bias(self) -> bool:
        """Whether the norm has a bias beside its weight."""
        return "rms_norm" not in self.norm

    @property
    def adds(self) -> bool:
        """Whether a residual is added before a row norm, or after BatchNorm."""
        return self.norm.startswith("add_") or "+ add" in self.norm

    @property
    def adapts(self) -> bool:
        """Whether there are a scale and a shift for each sample in the place of weight and bias."""
        return self.norm.startswith("adaptive_")

    @property
    def label(self) -> str:
        """The shape; the normalized dimensions of row norms stand in brackets."""
        sizes = [str(size) for size in self.shape]
        if not self.is_row:
            return "x".join(sizes)
        return "x".join([*sizes[: -self.normalized], f"[{'x'.join(sizes[-self.normalized :])}]"])

    @property
    def layout(self) -> str:
        """``contiguous``, ``channels_last`` or ``strided``."""
        return "strided" if self.strided else "channels_last" if self.channels_last else "contiguous"

    @property
    def dtype_name(self) -> str:
        """The dtype without ``torch.``."""
        return str(self.dtype).removeprefix("torch.")

    def name(self, direction: str) -> str:
        """What ``--filter`` is matched against."""
        return f"{self.norm} {self.group} {self.label} {self.layout} {self.dtype_name} {direction}"

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        """The shape of weight and bias, or of scale and shift."""
        if self.adapts:
            return self.shape[0], self.shape[-1]
        return self.shape[-self.normalized :] if self.is_row else self.shape[1:2]

    @property
    def parameter_dtype(self) -> torch.dtype:
        """The dtype of weight and bias: what half-precision models and mixed-precision training use."""
        return self.dtype if self.is_row or self.norm.startswith("group_norm") else torch.float32

    def least_bytes(self, direction: str) -> int:
        """The bytes that any implementation must move to and from memory, however clever: the floor of the case.

        Forward reads input, weight and bias and writes output. Backward reads input, grad_output and weight and
        writes three gradients. With a residual a row norm reads that and writes the sum too; backward reads two
        gradients and the sum, and writes one that is both terms'. BatchNorm reads it, and writes a gradient of it. An
        activation adds nothing.

        Each is counted once: what is read again (a channel norm's second pass over an input that outgrows the cache),
        fetched only to be overwritten, or saved for backward (statistics, an activation's signs) is left out.
        """
        tensor = math.prod(self.shape) * self.dtype.itemsize
        parameter = math.prod(self.parameter_shape) * self.parameter_dtype.itemsize
        touched = {"forward": 2, "evaluation": 2, "backward": 3, "both": 5}[direction]
        passes = {"forward": 1, "evaluation": 1, "backward": 1, "both": 2}[direction]
        sums = {"forward": 1, "evaluation": 1, "backward": 0, "both": 1}[direction] if self.is_row else 0
        residuals = passes + sums if self.adds else 0
        return touched * (tensor + parameter) + residuals * tensor - (0 if self.has_bias else passes * parameter)

    def leaves(self, device: str, gradients: bool) -> tuple[Tensor, ...]:
        """Input, residual, weight, and bias, as far as there are any; and whether gradients of them are wanted."""
        generator = torch.Generator(device).manual_seed(0)

        def data(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, generator=generator).to(self.dtype)

        def laid_out() -> Tensor:
            if self.strided:
                return data(*self.shape[:-1], 3 * self.shape[-1])[..., : self.shape[-1]]
            if self.channels_last:
                layout = torch.channels_last if len(self.shape) == 4 else torch.channels_last_3d
                return data(*self.shape).to(memory_format=layout)
            return data(*self.shape)

        x = laid_out()
        residual = [laid_out()] if self.adds else []
        if self.adapts:
            scale, shift, *_ = data(self.shape[0], 6 * self.shape[-1]).chunk(6, dim=-1)
            return tuple(leaf.detach().requires_grad_(gradients) for leaf in (x, scale, shift))
        parameters = (
            torch.randn(self.parameter_shape, device=device, generator=generator).to(self.parameter_dtype)
            for _ in range(2 if self.has_bias else 1)
        )
        return tuple(leaf.requires_grad_(gradients) for leaf in (x, *residual, *parameters))

    def arguments(self, leaves: tuple[Tensor, ...], training: bool) -> tuple[object, ...]:
        """What ``torch.nn.functional``'s function takes. Each call returns new running statistics: they are updated."""
        if self.adapts:
            return *leaves, EPS
        count = 2 if self.adds else 1
        data, parameters = leaves[:count], leaves[count:]
        if self.is_row:
            return *data, list(self.parameter_shape), *parameters, EPS
        if self.norm.startswith("group_norm"):
            return *data, GROUPS, *parameters, EPS
        if self.norm.startswith("instance_norm"):
            return *data, None, None, *parameters, True, MOMENTUM, EPS
        running_mean = torch.zeros(self.parameter_shape, device=data[0].device)
        running_var = torch.ones(self.parameter_shape, device=data[0].device)
        return *data, running_mean, running_var, *parameters, training, MOMENTUM, EPS


def _layer_norm_cpu() -> Iterator[Case]:
    def case(group: str, *shape: int, **options: object) -> Case:
        return Case("layer_norm", group, shape, **options)  # type: ignore[arg-type]

    # batch x tokens x width of BERT-base, BERT-large, GPT-2 XL, and of models of 7, 13, 70 and 175 billion parameters
    yield case("transformer", 8, 512, 768, quick=True, compiled=True)
    yield case("transformer", 8, 512, 1024)
    yield case("transformer", 4, 1024, 1600)
    yield case("transformer", 2, 1024, 4096, quick=True)
    yield case("transformer", 1, 2048, 5120)
    yield case("transformer", 1, 2048, 8192)
    yield case("transformer", 1, 2048, 12288)
    yield case("transformer", 1, 1024, 16384)
    for row in (2**exponent for exponent in range(6, 19, 2)):
        yield case("row length", 2**22 // row, row, directions=SWEEP, quick=row in (64, 1024, 16384, 262144))
    yield case("images", 32, 3, 224, 224, normalized=3, quick=True)
    yield case("images", 32, 3, 224, 224, normalized=2)
    yield case("few rows", 1, 150000, quick=True)
    yield case("few rows", 2, 65536)
    yield case("few rows", 67, 123479)
    yield case("odd", 4005, 4005)
    yield case("odd", 6000, 333)
    yield case("tiny", 4, 64, quick=True)
    yield case("tiny", 2, 10, 64)


def _layer_norm_cuda() -> Iterator[Case]:
    """Most of it what others publish figures of: quack, apex, Fast-LLM, and people who found torch slow."""

    def case(group: str, *shape: int, **options: object) -> Case:
        return Case("layer_norm", group, shape, **{"directions": SWEEP, **options})  # type: ignore[arg-type]

    for rows, width in ((65536, 768), (65536, 1024), (65536, 2048), (4096, 5120), (4096, 6144)):  # tokens x width
        quick = (rows, width) in ((65536, 768), (65536, 2048), (4096, 5120))
        yield case("transformer", rows, width, quick=quick, compiled=True)
    for row in (256, 512, 768, 1024, 2048, 4096, 8192, 16384, 32768, 65536):
        quick = row in (256, 1024, 4096, 16384, 65536)
        yield case("row length", 32768, row, quick=quick, compiled=quick)
    yield case("row length", 16384, 131072)
    yield case("row length", 8192, 262144, quick=True, compiled=True)
    yield case("short rows", 2**20, 128, quick=True, compiled=True)
    yield case("short rows", 648720, 128)
    for rows in (200, 1000, 6000, 6272):
        for row in (256, 512, 1024):
            yield case("small", rows, row)
    for rows in (1, 4, 64):
        for row in (4096, 8192):
            yield case("few rows", rows, row)
    yield case("images", 32, 3, 224, 224, normalized=3)
    yield case("odd", 67, 123479, quick=True)
    yield case("odd", 4005, 4005, quick=True)


def _rms_norm_cpu() -> Iterator[Case]:
    def case(group: str, *shape: int, **options: object) -> Case:
        return Case("rms_norm", group, shape, **options)  # type: ignore[arg-type]

    # batch x tokens x width of language models, among them odd multiples of 256 and of 128
    yield case("transformer", 4, 512, 1024)
    yield case("transformer", 2, 1024, 2304, quick=True)
    yield case("transformer", 2, 1024, 4096, quick=True, compiled=True)
    yield case("transformer", 1, 2048, 5120)
    yield case("transformer", 1, 2048, 7168)
    yield case("transformer", 1, 1024, 11008)
    yield case("transformer", 1, 1024, 16384)
    for width in (64, 128, 256):  # of queries and keys, a head's at a time
        yield case("heads", 1, 1024, 32, width, directions=SWEEP, quick=width == 128)
        yield case("heads", 1, 1024, 32, width, directions=SWEEP, strided=True, quick=width == 128)
    yield case("few rows", 4, 4096, quick=True)
    yield case("odd", 4005, 4005)
    yield case("tiny", 4, 64, quick=True)


def _rms_norm_cuda() -> Iterator[Case]:
    def case(group: str, *shape: int, **options: object) -> Case:
        return Case("rms_norm", group, shape, **{"directions": SWEEP, **options})  # type: ignore[arg-type]

    for width in (1024, 2304, 4096, 5120, 7168, 8192, 11008, 16384):
        quick = width in (1024, 4096, 8192)
        yield case("transformer", 32768, width, quick=quick, compiled=quick)
    for width in (64, 128, 256):
        for strided in (False, True):
            yield case("heads", 2**20, width, strided=strided, quick=width == 128, compiled=width == 128)
    for rows in (1, 16, 256):
        yield case("few rows", rows, 4096)
    yield case("odd", 4005, 4005)


def _fused_cpu() -> Iterator[Case]:
    """Row norms with what people write around them: in transformers a residual, in DiT (XL/2) a modulation."""
    for norm in ("add_layer_norm", "add_rms_norm"):
        yield Case(norm, "transformer", (8, 512, 768), compiled=norm == "add_layer_norm", quick=True)
        yield Case(norm, "transformer", (2, 1024, 4096), compiled=norm == "add_rms_norm", quick=True)
        yield Case(norm, "transformer", (1, 1024, 8192))
        yield Case(norm, "tiny", (4, 64))
    yield Case("adaptive_layer_norm", "DiT", (16, 256, 1152), quick=True, compiled=True)
    yield Case("adaptive_layer_norm", "DiT", (2, 1024, 3072))
    yield Case("adaptive_layer_norm", "tiny", (2, 4, 64))


def _fused_cuda() -> Iterator[Case]:
    for norm in ("add_layer_norm", "add_rms_norm"):
        for width in (1024, 4096, 8192):
            yield Case(norm, "transformer", (32768, width), directions=SWEEP, quick=width == 4096, compiled=True)
    yield Case("adaptive_layer_norm", "DiT", (256, 256, 1152), directions=SWEEP, quick=True, compiled=True)
    yield Case("adaptive_layer_norm", "DiT", (16, 4096, 3072), directions=SWEEP, quick=True, compiled=True)


def _batch_norm_cpu() -> Iterator[Case]:
    def case(group: str, *shape: int, **options: object) -> Case:
        return Case("batch_norm", group, shape, **{"directions": ALL, **options})  # type: ignore[arg-type]

    for channels_last in (False, True):
        for channels, side in RESNET50:
            quick = (channels, side) in ((64, 56), (1024, 14), (2048, 7))
            compiled = (channels, side) == (64, 56) and not channels_last
            yield case(
                "ResNet-50", 32, channels, side, side, channels_last=channels_last, quick=quick, compiled=compiled
            )
        for channels, side in ((2, 256), (8, 128), (32, 64), (128, 32), (512, 16), (2048, 8)):  # all of one size
            quick = channels in (8, 128, 2048) and not channels_last
            yield case(
                "channel count", 32, channels, side, side, channels_last=channels_last, directions=SWEEP, quick=quick
            )
        yield case("images", 32, 3, 224, 224, channels_last=channels_last, quick=True)
        yield case("3-d", 4, 32, 16, 56, 56, channels_last=channels_last)
        yield case("odd", 16, 65, 7, 7, channels_last=channels_last)
    yield case("1-d", 6000, 300, quick=True)
    yield case("1-d", 256, 1024)
    yield case("1-d", 65536, 1024)
    yield case("1-d", 32, 512, 128)
    yield case("tiny", 4, 64)
    yield case("tiny", 2, 8, 4, 4, quick=True)


def _activated(device: str) -> Iterator[Case]:
    """Channel norms with what follows them in models, and GroupNorm alone."""

    def case(norm: str, group: str, *shape: int, **options: object) -> Case:
        directions = TRAINING if device == "cpu" else SWEEP
        return Case(norm, group, shape, **{"directions": directions, **options})  # type: ignore[arg-type]

    layouts = (False, True)
    for norm in ("group_norm", "group_norm + silu"):
        for channels_last, batch, (channels, side) in itertools.product(layouts, (2, 8), STABLE_DIFFUSION):
            first = batch == 2 and norm != "group_norm"
            yield case(
                norm, "Stable Diffusion", batch, channels, side, side, channels_last=channels_last,
                quick=first and (channels, side) in ((320, 64), (1280, 16), (1280, 8)),
                compiled=first and channels == 320,
            )  # fmt: skip
    norm = "instance_norm + leaky_relu"
    for channels_last in layouts:
        for channels, side in ((32, 128), (64, 64), (320, 8)):
            if channels == 32 and channels_last:
                continue  # torch's takes ten seconds a call
            last = channels == 320
            yield case(
                norm, "nnU-Net", 2, channels, side, side, side, channels_last=channels_last, quick=last, compiled=last
            )
        yield case(norm, "style transfer", 4, 64, 256, 256, channels_last=channels_last)
    batch = 32 if device == "cpu" else 256
    for norm in ("batch_norm + relu", "batch_norm + add + relu"):
        for channels_last, (channels, side) in itertools.product(layouts, RESNET50):
            quick = (channels, side) == (1024, 14)
            yield case(
                norm, "ResNet-50", batch, channels, side, side, channels_last=channels_last, quick=quick, compiled=quick
            )


def _batch_norm_cuda() -> Iterator[Case]:
    def case(group: str, *shape: int, **options: object) -> Case:
        directions = ("forward", "backward", "evaluation")
        return Case("batch_norm", group, shape, **{"directions": directions, **options})  # type: ignore[arg-type]

    for channels_last in (False, True):
        for batch in (256, 32):
            for channels, side in RESNET50:
                quick = batch == 256 and (channels, side) in ((64, 56), (1024, 14), (2048, 7))
                compiled = batch == 256 and (channels, side) in ((64, 56), (1024, 14))
                yield case(
                    "ResNet-50", batch, channels, side, side,
                    channels_last=channels_last, quick=quick, compiled=compiled,
                )  # fmt: skip
        yield case("images", 32, 3, 224, 224, channels_last=channels_last, quick=True)
        yield case("3-d", 4, 32, 64, 64, 64, channels_last=channels_last)
        for batch in (8, 16, 32):
            for channels in (8, 64, 256, 768):
                for side in (7, 17, 64):
                    yield case("sizes", batch, channels, side, side, channels_last=channels_last, directions=SWEEP)
    for batch in (8, 16, 32):
        for channels in (8, 64, 256, 768):
            yield case("sizes", batch, channels, 1, 1, directions=SWEEP)
    yield case("1-d", 2**20, 64, quick=True)
    yield case("1-d", 65536, 1024, quick=True, compiled=True)
    yield case("1-d", 6000, 300)


def cases(device: str) -> list[Case]:
    """Every shape, in float32. Those of a GPU are larger: its L2 must not hold them."""
    if device == "cpu":
        return [*_layer_norm_cpu(), *_rms_norm_cpu(), *_fused_cpu(), *_batch_norm_cpu(), *_activated(device)]
    return [*_layer_norm_cuda(), *_rms_norm_cuda(), *_fused_cuda(), *_batch_norm_cuda(), *_activated(device)]
