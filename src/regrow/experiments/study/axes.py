"""The axes that studies share: methods and densities."""

from __future__ import annotations

from collections.abc import Sequence

from regrow.experiments.options import split_names
from regrow.experiments.study.study import Axis, Cell
from regrow.experiments.terminal import parse_densities
from regrow.experiments.train.methods import METHODS

__all__ = ["DENSITY", "METHOD", "dense_of", "percent"]


def dense_of(cells: Sequence[Cell]) -> Cell | None:
    """Return the dense training among the points whose key begins with the method; None if it was not run."""
    return next((cell for cell in cells if cell.key[0] == "dense"), None)


def percent(density: float) -> str:
    """Return a density in percent.

    Example:
        >>> percent(0.05)
        '5 %'
    """
    return f"{100 * density:g} %"


DENSITY = Axis(
    name="density",
    option="densities",
    default="0.01,0.05",
    help="Densities, separated by commas.",
    settings=lambda density: {"density": density},
    parse=parse_densities,
    title="density",
    label=percent,
    heading=lambda density: "dense" if density == 1 else percent(density),
)
"""How many weights exist; an axis of any study."""

METHOD = Axis(
    name="method",
    option="methods",
    default=",".join(METHODS),
    help="Methods, separated by commas.",
    settings=lambda method: {"method": method},
    parse=split_names,
    title="method",
)
"""How weights are dropped and grown; an axis of any study."""
