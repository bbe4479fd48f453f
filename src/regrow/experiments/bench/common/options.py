"""Options that several benches share, each declared once, and what they mean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import torch
import typer

from regrow.experiments.errors import UserError
from regrow.experiments.terminal import parse_densities

__all__ = [
    "Backend", "Blocks", "Densities", "Growth", "MarkdownFile", "Method", "Out", "Plot", "Rounds", "Seconds", "Threads",
    "block_name", "check_densities", "read_blocks", "read_densities", "read_growth", "use_threads",
]  # fmt: skip

Densities = Annotated[str, typer.Option(help="Shares of the weights that exist, separated by commas.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds for each row, at most.")]
Seconds = Annotated[float, typer.Option(min=0, help="No new round begins after so many, once there were 3.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads; by default PyTorch's own number.")]
Out = Annotated[Path | None, typer.Option(help="JSON file with all figures; where rows are many, it goes on with it.")]
MarkdownFile = Annotated[Path | None, typer.Option("--markdown", help="Write the tables as Markdown too.")]
Plot = Annotated[Path | None, typer.Option(help="PNG: speed-up over density; NAME-dark.png for dark pages too.")]
Method = Annotated[str | None, typer.Option(help="Method of sparse training; by default the preset's.")]
Growth = Annotated[str, typer.Option(help="What growth looks at; 'own' takes the method's own.")]
Blocks = Annotated[
    str, typer.Option(help="Also, in the same rounds, units of these outputs x inputs, separated by commas, as 4x1.")
]
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


def read_blocks(text: str) -> tuple[tuple[int, int], ...]:
    """Return the units of `--blocks`, outputs and inputs of each; none of an empty text.

    Raises:
        UserError: if one is not written as outputs x inputs.

    Example:
        >>> read_blocks("2x1,4x1")
        ((2, 1), (4, 1))
    """
    blocks = [each.strip() for each in text.split(",")] if text else []
    for block in blocks:
        if not re.fullmatch(r"[1-9]\d{0,8}x[1-9]\d{0,8}", block):
            raise UserError(f"--blocks {text}: write outputs x inputs, separated by commas, as 2x1,4x1")
    pairs = (block.split("x") for block in dict.fromkeys(blocks))
    return tuple((int(outputs), int(inputs)) for outputs, inputs in pairs)


def block_name(block: tuple[int, int]) -> str:
    """Return the name of what has units of some outputs and inputs, as tables show it.

    Example:
        >>> block_name((4, 1))
        'block 4x1'
    """
    return f"block {block[0]}x{block[1]}"


def read_growth(text: str) -> str | None:
    """Return the setting `growth` of `--growth`: None for the method's own."""
    return None if text == "own" else text
