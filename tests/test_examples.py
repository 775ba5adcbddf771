"""The examples of the tutorials that people start from, and whole networks beside their twins of torch.nn."""

import pytest
import torch
from torch import Tensor, nn

import normext
from examples import tutorial_numbers
from examples.transformer_block import TransformerBlock
from examples.tutorial_numbers import MIXED, SMALL, by_column, by_row

# As torch prints them, to four digits
PRINTED = {"rtol": 0, "atol": 5e-5}


def test_batch_norm_of_the_small_tensor(device: str) -> None:
    output = by_column(SMALL.to(device))
    expected = torch.tensor([-1.2247, 0.0, 1.2247]).view(3, 1).expand(3, 4)
    torch.testing.assert_close(output.cpu(), expected, **PRINTED)


def test_layer_norm_of_the_small_tensor(device: str) -> None:
    output = by_row(SMALL.to(device))
    expected = torch.tensor([-1.3416, -0.4472, 0.4472, 1.3416]).expand(3, 4)
    torch.testing.assert_close(output.cpu(), expected, **PRINTED)


def test_batch_norm_of_the_mixed_tensor(device: str) -> None:
    output = by_column(MIXED.to(device))
    expected = torch.tensor(
        [
            [-0.9503, 1.2675, -1.2247, -1.2247],
            [1.3822, -0.0905, 0.0000, 0.0000],
            [-0.4319, -1.1770, 1.2247, 1.2247],
        ]
    )
    torch.testing.assert_close(output.cpu(), expected, **PRINTED)


def test_layer_norm_of_the_mixed_tensor(device: str) -> None:
    output = by_row(MIXED.to(device))
    expected = torch.tensor(
        [
            [-0.6569, 1.7297, -0.5605, -0.5123],
            [-0.4660, 1.7268, -0.6853, -0.5756],
            [-1.5853, 1.0258, -0.0933, 0.6528],
        ]
    )
    torch.testing.assert_close(output.cpu(), expected, **PRINTED)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return tutorial_numbers.images()


def test_batch_norm_of_images(device: str, images: Tensor) -> None:
    output = normext.BatchNorm2d(3, device=device)(images.to(device))
    assert output.shape == images.shape
    torch.testing.assert_close(output.mean((0, 2, 3)), torch.zeros(3, device=device), rtol=0, atol=1e-6)
    torch.testing.assert_close(output.var((0, 2, 3), unbiased=False), torch.ones(3, device=device), rtol=2e-4, atol=0)


@pytest.mark.parametrize("normalized_shape", [[3, 224, 224], (224, 224)], ids=str)
def test_layer_norm_of_images(device: str, images: Tensor, normalized_shape: tuple[int, ...]) -> None:
    output = normext.LayerNorm(normalized_shape, device=device)(images.to(device))
    dims = tuple(range(-len(normalized_shape), 0))
    zeros = torch.zeros(32, *[1] * (4 - len(normalized_shape) - 1), device=device).expand(output.mean(dims).shape)
    torch.testing.assert_close(output.mean(dims), zeros, rtol=0, atol=1e-6)
    torch.testing.assert_close(output.var(dims, unbiased=False), zeros + 1, rtol=2e-4, atol=0)


@pytest.mark.parametrize("shape", [(2, 10, 64), (2, 8, 8, 128)], ids=str)
def test_layer_norm_of_tokens(device: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, device=device)
    output = normext.LayerNorm(shape[-1], device=device)(x)
    torch.testing.assert_close(output, nn.LayerNorm(shape[-1], device=device)(x))


def convolutional(library: object) -> nn.Module:
    """Two blocks of convolution, BatchNorm and ReLU, and a classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        library.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        library.BatchNorm2d(16, momentum=None),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 8 * 8, 32),
        library.BatchNorm1d(32),
        nn.Linear(32, 10),
    )


def transformer(library: object) -> nn.Module:
    """Two blocks over 16 tokens, and a classifier."""
    blocks = [TransformerBlock(d_model=32, nhead=4, dim_feedforward=64, norm=library.LayerNorm) for _ in range(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(16 * 32, 10))


def big_block(library: object) -> nn.Module:
    """The block as the tutorials have it."""
    block = TransformerBlock(d_model=512, nhead=8, dim_feedforward=2048, norm=library.LayerNorm)
    return nn.Sequential(block, nn.Linear(512, 10))


def train(model: nn.Module, x: Tensor, target: Tensor, steps: int) -> list[float]:
    """The loss at each step of stochastic gradient descent."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x).flatten(0, -2), target.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("network", "input_shape", "target_shape", "steps"),
    [
        (convolutional, (16, 3, 16, 16), (16,), 30),
        (transformer, (16, 16, 32), (16,), 30),
        (big_block, (2, 10, 512), (2, 10), 5),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_training_follows_torch(
    device: str, network: object, input_shape: tuple[int, ...], target_shape: tuple[int, ...], steps: int
) -> None:
    x = torch.randn(input_shape, device=device)
    target = torch.randint(10, target_shape, device=device)
    curves, models = [], []
    for library in (normext, nn):
        torch.manual_seed(1)
        models.append(network(library).to(device))
        curves.append(train(models[-1], x, target, steps))
    assert curves[0][-1] < 0.5 * curves[0][0]  # it does learn
    # Rounding differs from the first step on, and training amplifies it: a wrong gradient is off by percents at once.
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(models[0].eval()(x), models[1].eval()(x), rtol=1e-2, atol=1e-2)
