"""Progress of what takes long, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["tracker"]


@contextmanager
def tracker(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Gives a function that is told each advance; it draws a bar if stderr is a terminal, else does nothing."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda amount: progress.advance(task, amount)
