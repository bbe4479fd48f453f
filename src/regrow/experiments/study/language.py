"""A text by characters, and a small transformer that predicts the next one."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.experiments.data.sources import VARIABLE
from regrow.experiments.errors import UserError

__all__ = ["Text", "Transformer", "read_text"]

_NAME = "tinyshakespeare"
_FILE = "input.txt"
_DIGEST = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def read_text(root: Path | None = None) -> str:
    """Return Tiny Shakespeare, 1,115,394 characters.

    Args:
        root: the folder that holds `tinyshakespeare/`, or that with the file; None means $REGROW_DATA.

    Raises:
        UserError: if it is not there, or is another text.
    """
    given = root if root is not None else os.environ.get(VARIABLE)
    folders = [Path(given).expanduser() / _NAME, Path(given).expanduser()] if given else []
    path = next((folder / _FILE for folder in folders if (folder / _FILE).is_file()), None)
    if path is None:
        raise UserError(
            f"{_NAME} was not found: put {_FILE} of karpathy/char-rnn into a folder {_NAME}/ and give the folder above "
            f"it with --data or ${VARIABLE}"
        )
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != _DIGEST:
        raise UserError(f"{path} is not {_NAME}, or is damaged: its SHA-256 should be {_DIGEST}")
    return content.decode()


@dataclass(frozen=True)
class Text:
    """A text as numbers of its characters, the last tenth held out.

    Attributes:
        train: (characters,), int64.
        valid: likewise.
        characters: how many distinct ones there are.
    """

    train: Tensor
    valid: Tensor
    characters: int

    @classmethod
    def of(cls, text: str) -> Text:
        """Return a text as numbers.

        Example:
            >>> Text.of("abcabcabca").train
            tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
        """
        known = sorted(set(text))
        number = {character: at for at, character in enumerate(known)}
        numbers = torch.tensor([number[character] for character in text])
        end = len(numbers) * 9 // 10
        return cls(numbers[:end], numbers[end:], len(known))


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
