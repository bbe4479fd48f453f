"""Tables of plain cells, which a terminal or a page of Markdown then shows."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import rich.table

from regrow.experiments.terminal import OUT

__all__ = ["Table", "mib", "show", "this_command"]

_MIB = 1 << 20


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, and rows of as many cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return it as Markdown, under its title."""
        return f"### {self.title}\n\n{self.lines()}\n"

    def lines(self) -> str:
        """Return it as Markdown without its title."""
        below = tuple("---" if i == 0 else "---:" for i in range(len(self.columns)))
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.columns, below, *self.rows))


def show(tables: Iterable[Table]) -> None:
    """Print tables."""
    for table in tables:
        shown = rich.table.Table(title=table.title, title_justify="left")
        for index, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if index else "left", no_wrap=index == 0)
        for row in table.rows:
            shown.add_row(*row)
        OUT.print(shown)


def mib(size: int, digits: int = 1) -> str:
    """Return a number of bytes in MiB.

    Example:
        >>> mib(3 << 19)
        '1.5'
    """
    return f"{size / _MIB:.{digits}f}"


def this_command() -> str:
    """Return the command that was called, for a page that names how its figures were made."""
    return shlex.join(["regrow", *sys.argv[1:]])
