"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from regrow.experiments.errors import UserError
from regrow.experiments.train.config import parse_settings

__all__ = [
    "RUN",
    "TRAINED",
    "DataRoot",
    "Epochs",
    "Preset",
    "Seeds",
    "Settings",
    "Vary",
    "read_settings",
    "read_varied",
    "split_names",
]

TRAINED, RUN = "What is trained", "The run"
"""Groups of options in help."""

Preset = Annotated[str, typer.Argument(help="Name of a preset; `regrow presets` lists them.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data", envvar="REGROW_DATA", help="Folder with the data sets, or the one data set.", rich_help_panel=RUN
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any other setting, as learning_rate=0.05 or block=4x1; `regrow train --help` lists them.",
        rich_help_panel=TRAINED,
    ),
]
Vary = Annotated[
    list[str] | None,
    typer.Option(
        "--vary",
        metavar="KEY=[VALUE, VALUE]",
        help="A setting and its values, each with all else: another part of the study.",
        rich_help_panel=TRAINED,
    ),
]
Epochs = Annotated[int | None, typer.Option(help="Epochs; every schedule scales with them.", rich_help_panel=TRAINED)]
Seeds = Annotated[int, typer.Option(min=1, help="How many seeds, from 0.")]


def split_names(text: str) -> tuple[str, ...]:
    """Return the names that were given for an option, separated by commas.

    Example:
        >>> split_names("set, rigl")
        ('set', 'rigl')
    """
    return tuple(name.strip() for name in text.split(","))


def read_settings(settings: list[str] | None) -> dict[str, Any]:
    """Return the settings that were given with `--set`.

    Raises:
        UserError: if one is not written as `key=value`, or names the preset.
    """
    changes = parse_settings(settings or [])
    if "preset" in changes:
        raise UserError("--set preset: name the preset as the first argument instead")
    return changes


def read_varied(settings: list[str] | None) -> dict[str, list[Any]]:
    """Return the settings that were given with `--vary`, each with its values.

    Raises:
        UserError: if one is not written as `key=[value, value]`, or names the preset.

    Example:
        >>> read_varied(["momentum=[0.5, 0.9]"])
        {'momentum': [0.5, 0.9]}
    """
    varied = read_settings(settings)
    for key, values in varied.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"--vary {key}: write the values as a list, for instance --vary '{key}=[0.5, 0.9]'")
    return varied
