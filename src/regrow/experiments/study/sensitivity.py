"""The study of sensitivity: how the error moves with a setting, sparse beside dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from regrow.experiments.bench.common.tables import Table
from regrow.experiments.errors import UserError
from regrow.experiments.study.axes import METHOD
from regrow.experiments.study.intervals import Interval, differences
from regrow.experiments.study.panels import Panel
from regrow.experiments.study.study import TRAINING, Axis, Cell, Figure, Study
from regrow.experiments.train.config import TrainConfig, parse_settings

__all__ = ["SENSITIVITY_STUDY"]

_DENSE = "dense"
_DEFAULT = (
    "prune_rate=0.2,0.3,0.4,0.5,0.6,0.7 prune_rate_decay=cosine,linear momentum=0.5,0.7,0.8,0.9,0.95,0.99 "
    "weight_decay=0,0.0001,0.0005,0.001"
)


def _parse(text: str) -> tuple[str, ...]:
    """Return each setting with one value of it.

    Example:
        >>> _parse("momentum=0.5,0.9 prune_rate=0.2")
        ('momentum=0.5', 'momentum=0.9', 'prune_rate=0.2')
    """
    found = []
    for part in text.split():
        name, equals, values = part.partition("=")
        if not equals or name not in TrainConfig.model_fields or not all(values.split(",")):
            raise UserError(
                f"--over {part}: write settings and their values as in 'momentum=0.5,0.9 prune_rate=0.2,0.5'"
            )
        found += [f"{name}={value}" for value in values.split(",")]
    return tuple(found)


def _tables(cells: Sequence[Cell], title: str) -> list[Table]:
    """Return a table for each setting: a line for each value and sparse method, dense beside."""
    cells = _in_order(cells)
    found = {cell.key: cell for cell in cells}
    columns = ("value", "method", "test error, %", "seeds", "dense, %", "less dense", TRAINING.title)
    tables = []
    for name in dict.fromkeys(_name(cell) for cell in cells):
        rows = []
        for cell in cells:
            if _name(cell) != name or cell.key[1] == _DENSE:
                continue
            dense = found.get((cell.key[0], _DENSE))
            apart = differences(cell.errors, dense.errors) if dense else None
            beside = ("-" if dense is None else dense.error.text(), "-" if apart is None else apart.text(sign="+"))
            error = (cell.error.text(), str(cell.error.count))
            rows.append((_value(cell), cell.key[1], *error, *beside, TRAINING.text(cell)))
        tables.append(Table(f"{title}, {name}: mean ± standard error", columns, tuple(rows)))
    return tables


def _in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells by setting, and those of a number by its size: the preset's own value would come first."""
    names = list(dict.fromkeys(_name(cell) for cell in cells))

    def place(cell: Cell) -> tuple[int, float]:
        try:
            return names.index(_name(cell)), float(_value(cell))
        except ValueError:
            return names.index(_name(cell)), 0.0

    return sorted(cells, key=place)


def _name(cell: Cell) -> str:
    return str(cell.key[0]).partition("=")[0]


def _value(cell: Cell) -> str:
    return str(cell.key[0]).partition("=")[2]


def _panels(cells: Sequence[Cell]) -> list[Panel]:
    """Return a plot for each setting: the error over its values, a line for each method."""
    cells = _in_order(cells)
    panels = []
    for name in dict.fromkeys(_name(cell) for cell in cells):
        lines: dict[str, list[tuple[float | str, Interval]]] = {}
        for cell in cells:
            if _name(cell) == name:
                lines.setdefault(cell.key[1], []).append((_value(cell), cell.error))
        panels.append(Panel(lines, name, "test error, % (mean, standard error)"))
    return panels


SENSITIVITY_STUDY = Study(
    name="sensitivity",
    about="Vary one setting at a time, prune rate, momentum or decay: how much does it matter, sparse beside dense?",
    axes=(
        Axis(
            name="setting",
            option="over",
            default=_DEFAULT,
            help="Settings, each with its values, as in 'momentum=0.5,0.9 prune_rate=0.2,0.5'.",
            settings=lambda setting: parse_settings([setting]),
            parse=_parse,
            title="setting",
        ),
        replace(METHOD, default="dense,sparse-momentum"),
    ),
    figures=(Figure("test error", lambda cell: cell.error.text(), unit="%"), TRAINING),
    note="mean ± standard error",
    tables=_tables,
    panels=_panels,
)
