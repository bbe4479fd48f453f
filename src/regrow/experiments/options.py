"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DataRoot", "Epochs", "Preset", "Seeds", "Settings", "split_names"]

Preset = Annotated[str, typer.Argument(help="Name of a preset; `regrow presets` lists them.")]
DataRoot = Annotated[
    Path | None, typer.Option("--data", envvar="REGROW_DATA", help="Folder with the data sets, or the one data set.")
]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs; every schedule scales with them.")]
Seeds = Annotated[int, typer.Option(min=1, help="How many seeds, from 0.")]


def split_names(text: str) -> tuple[str, ...]:
    """Return the names that were given for an option, separated by commas.

    Example:
        >>> split_names("set, rigl")
        ('set', 'rigl')
    """
    return tuple(name.strip() for name in text.split(","))
