"""The study of units: what dropping and growing whole blocks of weights costs in accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from regrow.experiments.errors import UserError
from regrow.experiments.options import split_names
from regrow.experiments.study.axes import DENSITY, METHOD
from regrow.experiments.study.intervals import differences
from regrow.experiments.study.plots import plot_errors
from regrow.experiments.study.study import Axis, Cell, Figure, Study
from regrow.experiments.train.config import TrainConfig

__all__ = ["UNITS_STUDY"]

_SINGLE = "1x1"
# What sparse storage looks at by itself; masked storage would look at all.
_GROWTH = "window:22"


def _difference(cell: Cell) -> str:
    if cell.reference is None or cell.reference.key == cell.key:
        return "-"
    found = differences(cell.accuracies, cell.reference.accuracies)
    return "-" if found is None else found.text(sign="+")


def _same_growth(base: TrainConfig) -> None:
    if base.growth not in (None, _GROWTH):
        raise UserError(f"this study lets all units grow by growth={_GROWTH}, whatever their storage: leave growth out")


def _plot(cells: Sequence[Cell], path: Path, title: str) -> None:
    several = len({cell.key[0] for cell in cells}) > 1

    def name(cell: Cell) -> str:
        method, block, _ = cell.key
        return method if method == "dense" else f"{method}, {block}" if several else block

    plot_errors({(name(cell), cell.key[-1]): list(cell.errors.values()) for cell in cells}, path, title)


UNITS_STUDY = Study(
    name="units",
    about="Compare units of several weights with single ones: test accuracy, and the difference seed by seed.",
    axes=(
        replace(METHOD, default="sparse-momentum"),
        Axis(
            name="block",
            option="blocks",
            default="1x1,2x1,4x1,8x1",
            help="Outputs x inputs of a unit, separated by commas.",
            settings=lambda block: {"block": block},
            parse=split_names,
            title="unit",
        ),
        DENSITY,
    ),
    figures=(
        Figure("test accuracy", lambda cell: cell.accuracy.text(), unit="%"),
        Figure(f"less {_SINGLE}", _difference),
    ),
    note="mean ± standard error, differences seed by seed",
    shared={"growth": _GROWTH},
    check=_same_growth,
    reference=lambda key: (key[0], _SINGLE, key[2]),
    plot=_plot,
)
