"""The studies of methods over densities: test error of each, dense training beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from regrow.experiments.options import split_names
from regrow.experiments.study.plots import plot_errors
from regrow.experiments.study.study import Axis, Cell, Figure, Study
from regrow.experiments.terminal import parse_densities
from regrow.experiments.train.methods import METHODS

__all__ = ["DENSITY", "DENSITY_STUDY", "METHOD", "METHODS_STUDY"]


def _percent(density: float) -> str:
    return f"{100 * density:g} %"


DENSITY = Axis(
    name="density",
    option="densities",
    default="0.01,0.05",
    help="Densities, separated by commas.",
    settings=lambda density: {"density": density},
    parse=parse_densities,
    title="density",
    label=_percent,
    heading=lambda density: "dense" if density == 1 else _percent(density),
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

_ERROR = Figure("test error", lambda cell: cell.error_with(cell.standard_error), unit="%")


def _plot(cells: Sequence[Cell], path: Path, title: str) -> None:
    plot_errors({(cell.key[0], cell.key[1]): cell.errors for cell in cells}, path, title)


METHODS_STUDY = Study(
    name="methods",
    about="Compare several methods at several densities.",
    axes=(METHOD, DENSITY),
    figures=(_ERROR,),
    note="mean ± standard error",
    plot=_plot,
)

DENSITY_STUDY = Study(
    name="density",
    about="Compare one method at several densities with dense training.",
    axes=(
        Axis(
            name="method",
            option="method",
            default="sparse-momentum",
            help="The sparse method beside dense training.",
            settings=lambda method: {"method": method},
            parse=lambda method: ("dense", method),
            title="method",
        ),
        replace(DENSITY, default="0.01,0.02,0.05,0.1"),
    ),
    figures=(_ERROR,),
    note="mean ± standard error",
    plot=_plot,
)
