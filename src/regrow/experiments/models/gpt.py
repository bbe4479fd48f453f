"""A small transformer that predicts the next character."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.experiments.models.layers import ImageShape, scaled

__all__ = ["Gpt", "Transformer", "gpt"]


class Transformer(nn.Module):
    """A transformer that predicts the next character: (N, T) int64 to logits (N, T, characters).

    Blocks of self-attention and a perceptron, each behind a norm; positions are learned.

    Args:
        characters: how many there are.
        context: the most that it sees, T.
        width: of the residual stream.
        blocks: how many.
        heads: of attention; a divisor of `width`.

    Example:
        >>> model = Transformer(characters=5, context=8, width=16, blocks=1, heads=2)
        >>> model(torch.zeros(3, 8, dtype=torch.int64)).shape
        torch.Size([3, 8, 5])
    """

    def __init__(self, characters: int, context: int, width: int = 64, blocks: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        """Return the logits of the character after each."""
        x = self.embedding(text) + self.position[: text.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        samples, length, width = x.shape
        query, key, value = (
            self.attention_in(self.norm1(x)).view(samples, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(samples, length, width))
        out: Tensor = x + self.mlp_out(F.gelu(self.mlp_in(self.norm2(x))))
        return out


class Gpt(Transformer):
    """The transformer on pieces of text as data sets give them: (N, 1, 1, T) to logits (N, characters, T).

    Characters are whole numbers of any type, as of the float32 that batches are.
    """

    def forward(self, text: Tensor) -> Tensor:
        """Return the logits of the character after each, characters along dimension 1."""
        return super().forward(text.flatten(1).long()).transpose(1, 2)


def gpt(
    *, image_shape: ImageShape, classes: int, units: int = 256, blocks: int = 4, heads: int = 4, width: float = 1.0
) -> Gpt:
    """Build a transformer on pieces of text: (N, 1, 1, T) to logits (N, classes, T).

    Args:
        image_shape: 1, 1 and the characters of a piece.
        classes: how many different characters there are.
        units: of the residual stream, a multiple of `heads`.
        blocks: of attention and a perceptron.
        heads: of attention.
        width: what `units` is multiplied by, to the nearest multiple of `heads`.

    Raises:
        ValueError: if the width leaves no unit, or the heads do not divide the units.

    Example:
        >>> model = gpt(image_shape=(1, 1, 8), classes=5, units=16, blocks=1, heads=2)
        >>> model(torch.zeros(3, 1, 1, 8)).shape
        torch.Size([3, 5, 8])
    """
    if min(units, blocks, heads) < 1 or units % heads:
        raise ValueError(f"{heads} heads do not divide {units} units: take a number of units that is a multiple")
    return Gpt(classes, image_shape[-1], heads * scaled(units // heads, width), blocks, heads)
