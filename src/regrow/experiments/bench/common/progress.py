"""What is told of a measurement that takes many rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from regrow.experiments.terminal import ERR

__all__ = ["Progress", "RowProgress"]

Row = TypeVar("Row", contravariant=True)


class Progress(Protocol[Row]):
    """What is told of each row."""

    def begin(self, name: str, done: int, count: int) -> None:
        """Called before a row is measured."""

    def end(self, row: Row) -> None:
        """Called after it."""


class RowProgress(Generic[Row]):
    """A line on the terminal while a row is measured, and one that stays after it.

    Args:
        sentence: returns a row in one line.
    """

    def __init__(self, sentence: Callable[[Row], str]) -> None:
        self._sentence = sentence

    def begin(self, name: str, done: int, count: int) -> None:
        """Show what is measured next."""
        if ERR.is_terminal:
            ERR.print(f"{done}/{count}  {name} ...", end="\r", highlight=False)

    def end(self, row: Row) -> None:
        """Show the row."""
        ERR.print(self._sentence(row), markup=False, highlight=False, soft_wrap=True)
