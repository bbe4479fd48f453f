"""Options that several benches share, each declared once, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from regrow.experiments.errors import UserError
from regrow.experiments.terminal import parse_densities

__all__ = [
    "Backend", "Densities", "Growth", "MarkdownFile", "Method", "Out", "Plot", "Rounds", "Seconds", "Threads",
    "check_densities", "read_densities", "read_growth", "use_threads",
]  # fmt: skip

Densities = Annotated[str, typer.Option(help="Shares of the weights that exist, separated by commas.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds for each row, at most.")]
Seconds = Annotated[float, typer.Option(min=0, help="No new round begins after so many, once there were 3.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads; by default PyTorch's own number.")]
Out = Annotated[Path | None, typer.Option(help="JSON file with all figures; where rows are many, it goes on with it.")]
MarkdownFile = Annotated[Path | None, typer.Option("--markdown", help="Write the tables as Markdown too.")]
Plot = Annotated[Path | None, typer.Option(help="PNG file: speed-up of training steps over density.")]
Method = Annotated[str | None, typer.Option(help="Method of sparse training; by default the preset's.")]
Growth = Annotated[str, typer.Option(help="What growth looks at; 'own' takes the method's own.")]
Backend = Annotated[str, typer.Option(help="Storage of the sparse weights: auto, masked, cpu or measured.")]


def use_threads(threads: int | None) -> None:
    """Let PyTorch use as many threads; None leaves its own number."""
    if threads is not None:
        torch.set_num_threads(threads)


def read_densities(text: str) -> tuple[float, ...]:
    """Return the densities of `--densities`.

    Raises:
        UserError: if they are no numbers in (0, 1].
    """
    return check_densities(parse_densities(text))


def check_densities(densities: tuple[float, ...]) -> tuple[float, ...]:
    """Return densities as they are.

    Raises:
        UserError: if one does not lie in (0, 1].
    """
    if not all(0 < density <= 1 for density in densities):
        raise UserError(f"densities must lie in (0, 1], not {', '.join(f'{density:g}' for density in densities)}")
    return densities


def read_growth(text: str) -> str | None:
    """Return the setting `growth` of `--growth`: None for the method's own."""
    return None if text == "own" else text
