"""Trains models that nobody here wrote, by torch and by normext, and compares both with a copy in float64.

    python -m tests.models --output notes/models.md  # all of them: some minutes

Models of timm, torchvision, transformers and diffusers, as far as these are installed, small and randomly initialized,
take three steps of SGD. What is compared then: the output, the gradients, the buffers, and an output in evaluation.
"""

import argparse
import copy
import functools
import importlib
import itertools
import math
import re
import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import normext
from benchmarks import machine

LIBRARIES = ("timm", "torchvision", "transformers", "diffusers")
STEPS, RATE = 3, 0.01
MARGIN = 1.1  # of normext's error over torch's
PARTS = ("output", "gradients", "buffers", "evaluation")
TORCHS = r"aten::(native_(layer|batch|group)_norm|_fused_rms_norm|_native_batch_norm_legit.*)$"
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Model:
    """How to make a model, and inputs of a seeded draw."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]


# ------------------------------------------------------------------------------------------------ models
def images(name: str, side: int, channels: int = 3, batch: int = 4) -> Callable[[], Inputs]:
    """Random images, under the name that the model's forward has for them."""
    return lambda: {name: torch.randn(batch, channels, side, side)}


def of_timm(name: str, side: int = 64, **options: Any) -> Model:
    """A model of timm's, for ten classes."""
    make = functools.partial(_timm, name, **options)
    return Model(f"timm {name}", make, images("x", side))


def _timm(name: str, **options: Any) -> nn.Module:
    return importlib.import_module("timm").create_model(name, num_classes=10, **options)


def of_torchvision(name: str, side: int = 64) -> Model:
    """A model of torchvision's, for ten classes."""
    make = lambda: importlib.import_module("torchvision.models").get_model(name, num_classes=10)  # noqa: E731
    return Model(f"torchvision {name}", make, images("x", side))


TEXT = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


def of_transformers(name: str, **options: Any) -> Model:
    """A small model of transformers', on tokens."""

    def make() -> nn.Module:
        library = importlib.import_module("transformers")
        config = library.CONFIG_MAPPING[name](**{**TEXT, **options})
        for option in list(vars(config)):
            if "drop" in option and isinstance(getattr(config, option), float):
                setattr(config, option, 0.0)
        config._attn_implementation, config.use_cache = "eager", False
        return library.AutoModel.from_config(config)

    def inputs() -> Inputs:
        tokens = {"input_ids": torch.randint(3, 50, (3, 12))}
        return {**tokens, "decoder_input_ids": tokens["input_ids"].flip(1)} if name == "t5" else tokens

    return Model(f"transformers {name}", make, inputs)


def of_transformers_images(name: str, key: str = "pixel_values", side: int = 32, **options: Any) -> Model:
    """One on images, or on samples of sound."""
    inputs = images(key, side) if key == "pixel_values" else lambda: {key: torch.randn(2, 4000)}
    return Model(f"transformers {name}", of_transformers(name, **options).make, inputs)


def of_diffusers(name: str, inputs: Callable[[], Inputs], **options: Any) -> Model:
    """A small model of diffusers'."""
    return Model(f"diffusers {name}", lambda: getattr(importlib.import_module("diffusers"), name)(**options), inputs)


def noisy(channels: int, side: int, **more: Any) -> Callable[[], Inputs]:
    """What is denoised, and the step of it."""
    return lambda: {**more, "sample": torch.randn(2, channels, side, side), "timestep": torch.tensor([3, 7])}


MODELS = [
    of_torchvision("resnet18"),
    of_torchvision("mobilenet_v3_small"),
    of_torchvision("shufflenet_v2_x0_5"),
    of_transformers("bert"),
    of_transformers("gpt2", n_embd=64, n_layer=2, n_head=4),
    of_transformers("llama"),
    of_transformers("mistral"),
    of_transformers("qwen3"),
    of_transformers("gemma2"),
    of_transformers("gemma3_text"),
    of_transformers("t5", d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4),
    of_transformers("phi3"),
    of_transformers("gpt_neox"),
    of_transformers("cohere"),
    of_transformers("olmo2"),
    of_transformers("nemotron"),
    of_transformers("mamba", state_size=8),
    of_transformers_images("dinov2", image_size=32, patch_size=8),
    of_transformers_images(
        "wav2vec2", "input_values", conv_dim=(32, 32, 32), conv_stride=(5, 4, 4), conv_kernel=(10, 8, 4),
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, mask_time_prob=0.0,
    ),
    of_diffusers(
        "UNet2DModel", noisy(3, 16), in_channels=3, out_channels=3, block_out_channels=(32, 64), norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
    of_diffusers(
        "AutoencoderKL", images("sample", 16), block_out_channels=(32, 64), norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    of_diffusers(
        "DiTTransformer2DModel", lambda: {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([3, 7]),
        "class_labels": torch.tensor([1, 2])},
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
        num_embeds_ada_norm=10, norm_num_groups=8, dropout=0.0,
    ),
    of_timm("resnet10t"),
    of_timm("convnext_atto", depths=(1, 1, 2, 1)),
    of_timm("convnextv2_atto", depths=(1, 1, 2, 1)),
    of_timm("vit_tiny_patch16_224", 32, img_size=32, depth=3),
    of_timm("swin_tiny_patch4_window7_224", 56, img_size=56, depths=(1, 1, 2, 1), embed_dim=24, num_heads=(1, 2, 4, 8)),
    of_timm("regnetx_002"),
    of_timm("efficientnet_lite0"),
    of_timm("mobilenetv3_small_050"),
    of_timm("densenet121", growth_rate=8, block_config=(2, 2, 2, 2)),
    of_timm("resnetv2_50", layers=(1, 1, 1, 1)),
    of_timm("resnetv2_50d_gn", layers=(1, 1, 1, 1)),
    of_timm("poolformer_s12"),
    of_timm("poolformerv2_s12"),
    of_timm("edgenext_xx_small"),
    of_timm("pvt_v2_b0"),
    of_timm("mobilevit_xxs"),
    of_timm("xcit_nano_12_p16_224", depth=3),
    of_timm("repvgg_a0"),
    of_timm("mambaout_femto", depths=(1, 1, 2, 1)),
    of_timm("starnet_s1"),
    of_timm("mobilenetv4_conv_small"),
    of_timm("vit_small_patch16_rope_ape_224", 32, img_size=32, depth=2),
]  # fmt: skip
COMPILED = {
    "timm resnet10t", "timm convnext_atto", "timm vit_tiny_patch16_224", "transformers llama", "transformers bert"
}  # fmt: skip


def available() -> list[Model]:
    """The models whose libraries are installed."""
    there = set()
    for library in LIBRARIES:
        try:
            importlib.import_module(library)
            there.add(library)
        except (ImportError, RuntimeError, OSError):  # torchvision's operators may be of another torch
            continue
    return [model for model in MODELS if model.name.split()[0] in there]


# ------------------------------------------------------------------------------------------------ a run
class Wide(TorchFunctionMode):
    """Where a model asks for float32 in a copy of float64, it gets float64."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Replaces the dtype."""
        wide = lambda value: torch.float64 if value is torch.float32 else value  # noqa: E731
        if func is Tensor.float:
            func = Tensor.double
        return func(*map(wide, args), **{name: wide(value) for name, value in (kwargs or {}).items()})


class Calls(TorchDispatchMode):
    """Counts norms among the operators that are called: torch's and normext's."""

    def __init__(self) -> None:
        super().__init__()
        self.torchs, self.ours = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Counts, and calls."""
        self.torchs += re.match(TORCHS, func.name()) is not None
        self.ours += re.match(r"normext::.*_forward$", func.name()) is not None
        return func(*args, **(kwargs or {}))


def tensor_of(output: Any) -> Tensor:
    """The first tensor of what a model returns."""
    while not isinstance(output, Tensor):
        output = output[0] if isinstance(output, (tuple, list)) else next(iter(output.values()))
    return output


def call(model: nn.Module, inputs: Inputs) -> Tensor:
    """The model's output, for inputs in its own dtype."""
    dtype = next(model.parameters()).dtype
    given = {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs.items()}
    if type(model).__name__ == "AutoencoderKL":
        given["sample_posterior"] = False
    return tensor_of(model(**given))


def trained(model: nn.Module, inputs: Inputs) -> dict[str, list[Tensor]]:
    """What the parts are after the steps, in float64."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    before = [b.clone() for b in model.buffers()]
    for _ in range(STEPS):
        optimizer.zero_grad()
        output = call(model, inputs)
        target = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output).to(output.dtype)
        (output - target).square().mean().backward()
        optimizer.step()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    buffers = [b for b, old in zip(model.buffers(), before, strict=True) if not torch.equal(b, old)]
    with torch.no_grad():
        evaluation = call(model.eval(), inputs)
    parts = [output.detach()], gradients, [b for b in buffers if b.is_floating_point()], [evaluation]
    return {name: [t.double() for t in part] for name, part in zip(PARTS, parts, strict=True)}


def error(found: list[Tensor], wanted: list[Tensor]) -> float | None:
    """The median over tensors of the error's norm, relative to that of what is wanted; None if there is nothing."""
    pairs = [(f, w) for f, w in zip(found, wanted, strict=True) if w.norm() > 0]
    return statistics.median(float((f - w).norm() / w.norm()) for f, w in pairs) if pairs else None


# ------------------------------------------------------------------------------------------------ comparisons
def plain(model: nn.Module, inputs: Inputs) -> dict[str, list[Tensor]]:
    """By torch."""
    return trained(model, inputs)


def enabled(model: nn.Module, inputs: Inputs) -> dict[str, list[Tensor]]:
    """Under enable()."""
    with normext.enabled():
        return trained(model, inputs)


def converted(model: nn.Module, inputs: Inputs) -> dict[str, list[Tensor]]:
    """Converted, with activations where they follow."""
    normext.convert(model, fuse=True)
    return trained(model, inputs)


WAYS = {"enable()": enabled, "convert()": converted}


@dataclass
class Result:
    """What was found of a model: logarithms of normext's error over torch's, by way, dtype and part, one a draw."""

    name: str
    norms: int = 0
    report: Any = None
    calls: tuple[int, int] = (0, 0)
    ratios: dict[tuple[str, torch.dtype, str], list[float]] = field(default_factory=dict)
    compiled: bool = False

    def mean(self, way: str, dtype: torch.dtype, part: str) -> float | None:
        """The geometric mean of the draws."""
        found = self.ratios.get((way, dtype, part))
        return math.exp(statistics.mean(found)) if found else None


def norms(model: nn.Module) -> list[nn.Module]:
    """The norms of a model, as far as names tell; those of weights are none, nor are blocks with layers in them."""
    named = [m for m in model.modules() if re.search("(?<!Weight)Norm(?!alize)", type(m).__name__)]
    return [m for m in named if not any(child.state_dict() for child in m.children())]


def made(model: Model, seed: int) -> tuple[nn.Module, Inputs]:
    """The model of a draw, without dropout, and its inputs."""
    torch.manual_seed(seed)
    module = model.make().train()
    for child in module.modules():
        if isinstance(child, nn.modules.dropout._DropoutNd):
            child.p = 0.0
    for parameter in module.parameters():  # neither ones nor zeros; layer scales of 1e-6 would hide what is in a branch
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return module, model.inputs()


def compare(model: Model, seed: int, dtypes: tuple[torch.dtype, ...], result: Result) -> None:
    """A draw: adds the errors' ratios to the result."""
    module, inputs = made(model, seed)
    for dtype in dtypes:
        start = copy.deepcopy(module).to(dtype)
        inputs = {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs.items()}
        with Wide():
            wanted = plain(copy.deepcopy(start).double(), inputs)
        errors = {
            way: {part: error(found[part], wanted[part]) for part in PARTS}
            for way, found in ((w, f(copy.deepcopy(start), inputs)) for w, f in {"torch": plain, **WAYS}.items())
        }
        for way, part in itertools.product(WAYS, PARTS):
            ours, theirs = errors[way][part], errors["torch"][part]
            if ours is not None and theirs:
                result.ratios.setdefault((way, dtype, part), []).append(math.log(ours / theirs))


def inspect(model: Model, result: Result, compiled: bool) -> None:
    """Counts norms and their calls, and tries state_dict and, if asked to, torch.compile and torch.export."""
    module, inputs = made(model, 0)
    twin = copy.deepcopy(module).eval()
    state = {name: t.clone() for name, t in module.state_dict().items()}
    result.norms, result.report = len(norms(module)), normext.convert(module, fuse=True)
    module.load_state_dict(twin.state_dict())
    twin.load_state_dict(module.state_dict())
    assert list(state) == list(module.state_dict()) and all(
        map(torch.equal, state.values(), twin.state_dict().values())
    )
    module.eval()
    with torch.no_grad():
        expected = call(twin, inputs)
        with Calls() as theirs:
            call(twin, inputs)
        with Calls() as ours:
            found = call(module, inputs)
        result.calls = theirs.torchs, ours.ours
        near = functools.partial(torch.testing.assert_close, rtol=2e-3, atol=2e-3)
        near(found, expected)
        if compiled:
            near(call(torch.compile(module), inputs), expected)
            exported = torch.export.export(module, (), inputs).module()
            near(tensor_of(exported(**inputs)), expected)
            result.compiled = True
    normext.revert(module)
    assert [type(m) for m in module.modules()] == [type(m) for m in twin.modules()]


def examined(model: Model, draws: int, dtypes: tuple[torch.dtype, ...], compiled: bool = False) -> Result:
    """All there is to find out of a model."""
    result = Result(model.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inspect(model, result, compiled)
        for seed in range(draws):
            compare(model, seed, dtypes, result)
    return result


# ------------------------------------------------------------------------------------------------ the table
DTYPES = (torch.float32, torch.bfloat16)
NOTE = """# Models that nobody here wrote

`python -m tests.models` takes {count} models of {versions}, small and randomly initialized, through {steps} steps of
SGD by torch, under `enable()` and after `convert(fuse=True)`, and beside them a copy in float64 (which also computes in
float64 what a model asks to be computed in float32). An error is the difference to that copy in the 2-norm, relative
to the copy's, the median over tensors. Below stand normext's errors over torch's, below 1 where normext is more exact:
of the last step's output, of its gradients, of the buffers after it, of an output in evaluation; geometric means of
{draws} draws of parameters and inputs, on two cores of a {processor}.

A network multiplies whatever was rounded first, so a single draw is luck, for torch as for normext. Within a model the
logarithm of the ratio scatters by s from draw to draw (pooled over the models, a column each), and the mean of {draws}
draws by s / sqrt({draws}). A mean counts as above torch's where it exceeds {margin} by more than two of these.
{verdict}

{overall}

Every state_dict went into the other model and back, `revert` gave all classes back, and an evaluation agreed within
2e-3. Marked with * are those that were compiled by inductor and exported, converted, and agreed as well. "Operators"
are calls of torch's norm operators in a forward pass, which are what `enable()` can compute, and of normext's after
`convert`. Left: {left}.

| model | norms | converted | operators: enable, convert | {columns} |
|---|---|---|---|{rule}
"""


def cells() -> Iterator[tuple[str, torch.dtype]]:
    """The columns of ratios, each with its parts."""
    return itertools.product(WAYS, DTYPES)  # type: ignore[return-value]


def scatter(results: list[Result], way: str, dtype: torch.dtype, part: str) -> float:
    """The standard deviation of a draw's logarithm within its model, pooled."""
    found = [r.ratios[way, dtype, part] for r in results if len(r.ratios.get((way, dtype, part), [])) > 1]
    squares = [statistics.variance(draws) for draws in found]
    return math.sqrt(statistics.mean(squares)) if squares else 0.0


def above(results: list[Result], draws: int) -> list[str]:
    """The means that are above torch's by more than the margin and what draws scatter."""
    found = []
    for (way, dtype), part in itertools.product(cells(), PARTS):
        noise = 2 * scatter(results, way, dtype, part) / math.sqrt(draws)
        means = {r.name: r.mean(way, dtype, part) for r in results}
        found += [
            f"{name}, {way}, {_short(dtype)}, {part}: {mean:.2f}"
            for name, mean in means.items()
            if mean is not None and math.log(mean) - noise > math.log(MARGIN)
        ]
    return found


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def overall(results: list[Result]) -> str:
    """A table of the geometric means over models."""
    lines = [f"| geometric mean over models (s) | {' | '.join(PARTS)} |", "|---|" + "---|" * len(PARTS)]
    for way, dtype in cells():
        texts = []
        for part in PARTS:
            means = [mean for r in results if (mean := r.mean(way, dtype, part))]
            typical = statistics.geometric_mean(means) if means else math.nan
            texts.append(f"{typical:.2f} ({scatter(results, way, dtype, part):.2f})")
        lines.append(f"| {way}, {_short(dtype)} | {' | '.join(texts)} |")
    return "\n".join(lines)


def row(r: Result) -> str:
    """A model's line."""
    texts = [
        f"{r.name}{'*' if r.compiled else ''}",
        str(r.norms),
        str(len(r.report.converted)),
        f"{r.calls[0]}, {r.calls[1]}",
    ]
    for way, dtype in cells():
        means = [r.mean(way, dtype, part) for part in PARTS]
        texts.append(", ".join("-" if mean is None else f"{mean:.2f}" for mean in means))
    return f"| {' | '.join(texts)} |"


def note(results: list[Result], draws: int) -> str:
    """The page."""
    versions = ", ".join(
        f"{name} {importlib.import_module(name).__version__}"
        for name in LIBRARIES
        if any(r.name.startswith(name) for r in results)
    )
    kinds = Counter((left.cls.__name__, left.why) for r in results for left in r.report.left.values())
    left = "; ".join(f"{count} {name} ({why})" for (name, why), count in kinds.items()) or "none"
    wrong = above(results, draws)
    verdict = f"Such are: {'; '.join(wrong)}." if wrong else f"Of {len(results) * 16} means none does."
    columns = " | ".join(f"{way}, {_short(dtype)}" for way, dtype in cells())
    where = machine.describe("cpu")
    head = NOTE.format(
        count=len(results), versions=f"{versions} (torch {torch.__version__})", steps=STEPS, draws=draws, margin=MARGIN,
        verdict=verdict, overall=overall(results), left=left, columns=columns, rule="---|" * 4,
        processor=where["processor"],
    )  # fmt: skip
    return head + "\n".join(map(row, results)) + "\n"


def main() -> None:
    """Examines all, and writes the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.models", description=__doc__.split("\n")[0])
    parser.add_argument("regex", nargs="?", default="", help="only models whose names match")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--output", type=Path, help="where to write the note; printed if not given")
    arguments = parser.parse_args()
    results = []
    for model in available():
        if re.search(arguments.regex, model.name):
            results.append(examined(model, arguments.draws, DTYPES, model.name in COMPILED))
            print(row(results[-1]), flush=True)
            if arguments.output:  # as far as it has come
                arguments.output.write_text(note(results, arguments.draws))
    if not arguments.output:
        print(note(results, arguments.draws))


if __name__ == "__main__":
    main()
