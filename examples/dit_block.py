"""A block of a diffusion transformer, whose norms are scaled and shifted by what it is conditioned on: AdaLN-Zero.

``python -m examples.dit_block`` prints that a new block is the identity, and what autograd keeps of it for backward,
with the norm and its modulation in one pass and with torch's operators.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normext

from .saved import saved_bytes


class DiTBlock(nn.Module):
    """Peebles and Xie, "Scalable Diffusion Models with Transformers" (2022), figure 3.

    The condition, such as the embeddings of a time and a class, gives each sample six vectors: a shift and a scale for
    either norm, and a gate for either layer. The gates start at zero, and the block as the identity.

    Args:
        d_model: the width of a token, and of the condition.
        nhead: attention heads.

    Shape:
        ``[batch, tokens, d_model]`` and ``[batch, d_model]``; output as the first.

    """

    def __init__(self, d_model: int, nhead: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(d_model, nhead, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.GELU(approximate="tanh"), nn.Linear(4 * d_model, d_model)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(d_model, 6 * d_model))
        for parameter in self.modulation.parameters():
            nn.init.zeros_(parameter)

    def normalize(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Each token to mean 0 and variance 1, then ``* (1 + scale) + shift`` of its sample, in one pass."""
        return normext.adaptive_layer_norm(x, scale, shift, eps=1e-6)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        # The six are parts of one tensor, and read where they lie.
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        y = self.normalize(x, scale1, shift1)
        x = x + gate1.unsqueeze(1) * self.attention(y, y, y, need_weights=False)[0]
        y = self.normalize(x, scale2, shift2)
        return x + gate2.unsqueeze(1) * self.feed_forward(y)


class ByHand(DiTBlock):
    """The same block of torch's operators."""

    def normalize(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """As people write it."""
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def main() -> None:
    """Prints both."""
    torch.manual_seed(0)
    x, condition = torch.randn(4, 256, 384), torch.randn(4, 384)
    print("kept for backward, of a DiT block of 4 x 256 tokens of 384")
    for name, block in (("adaptive_layer_norm", DiTBlock(384, 6)), ("torch's operators", ByHand(384, 6))):
        assert torch.equal(block(x, condition), x)  # a new block is the identity
        print(f"{name:20} {saved_bytes(block, x, condition) / 2**20:5.1f} MiB")


if __name__ == "__main__":
    main()
