"""A text in pieces: characters as numbers, each with the one after it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regrow.experiments.data.digests import verify
from regrow.experiments.data.registry import Dataset
from regrow.experiments.errors import UserError

__all__ = ["content", "pieces", "read"]

Pieces = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Characters (N, 1, 1, T), and the one after each (N, T)."""


def content(folder: Path, dataset: Dataset) -> str:
    """Return the whole text.

    Raises:
        UserError: if the file is missing, unreadable or another one.
    """
    (name,) = dataset.files
    try:
        text = (folder / name).read_bytes()
    except OSError as error:
        raise UserError(f"{folder / name} cannot be read ({error}); fetch it again") from error
    verify(text, dataset.digests[name], folder / name)
    return text.decode()


def read(folder: Path, dataset: Dataset) -> tuple[Pieces, Pieces]:
    """Return the training and the test pieces: the last tenth of the text is for the test.

    Raises:
        UserError: if the file is missing, unreadable or another one.
    """
    text = content(folder, dataset)
    known = {character: number for number, character in enumerate(sorted(set(text)))}
    numbers = np.fromiter((known[character] for character in text), np.uint8, len(text))
    end = len(numbers) * 9 // 10
    return pieces(numbers[:end], dataset.image_size), pieces(numbers[end:], dataset.image_size)


def pieces(numbers: NDArray[np.uint8], length: int) -> Pieces:
    """Cut characters into pieces that do not overlap; what is left over at the end is left out.

    >>> characters, following = pieces(np.arange(8, dtype=np.uint8), 3)
    >>> characters[:, 0, 0].tolist(), following.tolist()
    ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
    """
    count = (len(numbers) - 1) // length
    before = numbers[: count * length].reshape(count, 1, 1, length)
    after = numbers[1 : count * length + 1].reshape(count, length)
    return before, after.astype(np.int64)
