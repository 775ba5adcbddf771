"""A transformer's block, post-norm and pre-norm, with its sums beside its norms and in them.

``python -m examples.transformer_block`` prints the gradients that reach the first and the last of 12 blocks of either,
and how far a block with its sums in the norms is from the one without.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import normext

PLACES = {"post-norm": False, "pre-norm": True}  # norm_first


class TransformerBlock(nn.Module):
    """Attention and a network of two layers, each added to what it was given.

    Post-norm, as in "Attention Is All You Need", normalizes the sums; pre-norm normalizes what goes into attention and
    network, and leaves the sums as they are.

    Args:
        d_model: the width of a token.
        nhead: attention heads.
        dim_feedforward: the width between the network's layers.
        norm: makes a norm of the width that it is given.
        norm_first: pre-norm instead of post-norm.

    Shape:
        ``[batch, tokens, d_model]``, input and output.

    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int,
        norm: Callable[[int], nn.Module] = normext.LayerNorm,
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(d_model, nhead, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, dim_feedforward), nn.ReLU(), nn.Linear(dim_feedforward, d_model)
        )
        self.norm1, self.norm2 = norm(d_model), norm(d_model)
        self.norm_first = norm_first

    def attend(self, x: Tensor) -> Tensor:
        """Attention of the tokens to each other."""
        return self.attention(x, x, x, need_weights=False)[0]

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self.attend(self.norm1(x))
            return x + self.feed_forward(self.norm2(x))
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + self.feed_forward(x))


class FusedTransformerBlock(TransformerBlock):
    """The same block with the same state_dict; where a norm is of a sum, both are computed in one pass over memory."""

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int, norm_first: bool = False) -> None:
        super().__init__(d_model, nhead, dim_feedforward, normext.AddLayerNorm, norm_first)
        if norm_first:
            self.norm1 = normext.LayerNorm(d_model)  # no sum of this block is before it

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            y, x = self.norm2(self.attend(self.norm1(x)), x)
            return x + self.feed_forward(y)
        x, _ = self.norm1(self.attend(x), x)
        x, _ = self.norm2(self.feed_forward(x), x)
        return x


def gradients(norm: Callable[[int], nn.Module], norm_first: bool, depth: int = 12, d_model: int = 64) -> list[float]:
    """The norm of the gradient of each block's first linear layer, for a random gradient at the output."""
    torch.manual_seed(0)
    blocks = nn.Sequential(*(TransformerBlock(d_model, 4, 4 * d_model, norm, norm_first) for _ in range(depth)))
    last = norm(d_model) if norm_first else nn.Identity()  # a pre-norm stack ends in a norm of its own
    output = last(blocks(torch.randn(8, 16, d_model)))
    weights = [block.get_parameter("feed_forward.0.weight") for block in blocks]
    return [gradient.norm().item() for gradient in torch.autograd.grad(output, weights, torch.randn_like(output))]


def difference(norm_first: bool, d_model: int = 64) -> float:
    """The largest between the outputs of a block and the one with its sums in the norms."""
    torch.manual_seed(0)
    block = TransformerBlock(d_model, 4, 4 * d_model, norm_first=norm_first)
    fused = FusedTransformerBlock(d_model, 4, 4 * d_model, norm_first)
    fused.load_state_dict(block.state_dict())
    x = torch.randn(8, 16, d_model)
    return (fused(x) - block(x)).abs().max().item()


def main() -> None:
    """Prints both."""
    print("gradient of                first block   last block")
    for norm in (normext.LayerNorm, normext.RMSNorm):
        for name, norm_first in PLACES.items():
            sizes = gradients(norm, norm_first)
            print(f"{norm.__name__:10} {name:12} {sizes[0]:12.2f} {sizes[-1]:12.2f}")
    print("with the sums in the norms, outputs differ by at most")
    for name, norm_first in PLACES.items():
        print(f"AddLayerNorm {name:10} {difference(norm_first):12.1e}")


if __name__ == "__main__":
    main()
