"""A text by characters, as the study of Adam trains on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from regrow.experiments.data import registry, sources, text
from regrow.experiments.models.gpt import Transformer

__all__ = ["Text", "Transformer", "read_text"]

_NAME = "tinyshakespeare"


def read_text(root: Path | None = None) -> str:
    """Return Tiny Shakespeare, 1,115,394 characters.

    Args:
        root: the folder that holds `tinyshakespeare/`, or that with the file; None means $REGROW_DATA.

    Raises:
        UserError: if it is not to be had, or is another text.
    """
    return text.content(sources.fetch(_NAME, root), registry.get(_NAME))


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
