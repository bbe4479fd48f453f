"""The study of methods: their errors at each density, each with its own distribution and all with one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regrow.core.distribution import DISTRIBUTIONS
from regrow.experiments.bench.common.tables import Table
from regrow.experiments.errors import UserError
from regrow.experiments.options import split_names
from regrow.experiments.study.axes import DENSITY, METHOD, dense_of, percent
from regrow.experiments.study.intervals import differences
from regrow.experiments.study.panels import Dots
from regrow.experiments.study.study import INFERENCE, TRAINING, Axis, Cell, Figure, Study
from regrow.experiments.train.methods import METHODS

__all__ = ["METHODS_STUDY", "best_other"]

_OWN = "own"
_DENSE = "dense"
_ANY_TRAINING = 1000


def _parse(text: str) -> tuple[str, ...]:
    names, known = split_names(text), (_OWN, *DISTRIBUTIONS)
    for name in names:
        if name not in known:
            raise UserError(f"there is no distribution {name!r}: choose among {', '.join(known)}")
    return names


def _distribution(name: str) -> Mapping[str, Any]:
    return {"distribution": None if name == _OWN else name}


def _settle(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave a distribution that is the method's own unset, so that it is not run twice."""
    factory = METHODS.get(settings["method"])
    # Long enough for every schedule: a method that ends before the training does has no recipe for a few steps.
    own = factory(every=1, steps=_ANY_TRAINING).distribution if factory else None
    return {**settings, "distribution": None} if settings["distribution"] == own else settings


def best_other(cell: Cell, cells: Sequence[Cell]) -> Cell | None:
    """Return the other sparse method of the least mean error, at the same density and in the same comparison.

    None for dense training, and where there is no other.
    """
    method, distribution, density = cell.key
    if method == _DENSE:
        return None
    others = (
        other for other in cells if other.key[0] not in (method, _DENSE) and other.key[1:] == (distribution, density)
    )
    return min(others, key=lambda other: other.error.mean, default=None)


def _tables(cells: Sequence[Cell], title: str) -> list[Table]:
    """Return a table for each density and distribution, the best method first, dense in each."""
    dense = [cell for cell in cells if cell.key[0] == _DENSE][:1]
    sparse = [cell for cell in cells if cell.key[0] != _DENSE]
    columns = (
        *("method", "test error, %", "95 % interval", "seeds", "best other", "less best other, 95 %", "relative, %"),
        *(TRAINING.title, INFERENCE.title),
    )
    found = []
    for density, distribution in dict.fromkeys((cell.key[2], cell.key[1]) for cell in sparse):
        compared = [cell for cell in sparse if cell.key[1:] == (distribution, density)]
        rows = [_row(cell, compared) for cell in sorted([*compared, *dense], key=lambda cell: cell.error.mean)]
        spread = "each with its own distribution" if distribution == _OWN else f"all {distribution}"
        found.append(Table(f"{title} at {percent(density)}, {spread}: mean ± standard error", columns, tuple(rows)))
    if not sparse:
        found.append(Table(title, columns, tuple(_row(cell, []) for cell in dense)))
    return found


def _row(cell: Cell, compared: Sequence[Cell]) -> tuple[str, ...]:
    other = best_other(cell, compared)
    beside = ("-", "-", "-")
    if other is not None:
        apart = differences(cell.errors, other.errors)
        relative = 100 * (cell.error.mean / other.error.mean - 1) if other.error.mean else 0.0
        beside = (other.key[0], "-" if apart is None else apart.text(sign="+", spread=apart.half), f"{relative:+.1f}")
    error = cell.error
    numbers = (error.text(), error.bounds(), str(error.count))
    return (cell.key[0], *numbers, *beside, TRAINING.text(cell), INFERENCE.text(cell))


def _panels(cells: Sequence[Cell]) -> list[Dots]:
    """Return a plot for each density: the error of every method with its interval, dense as a band."""
    dense = dense_of(cells)
    sparse = [cell for cell in cells if cell is not dense and cell.key[0] != _DENSE]
    several = len({cell.key[1] for cell in sparse}) > 1
    panels = []
    for density in dict.fromkeys(cell.key[2] for cell in sparse):
        rows = {
            cell.key[0] + (f" ({cell.key[1]})" if several else ""): list(cell.errors.values())
            for cell in sparse
            if cell.key[2] == density
        }
        band = None if dense is None else ("dense, 95 % interval", dense.error)
        panels.append(Dots(rows, "test error, % (seeds, mean, 95 % interval)", percent(density), band))
    if not panels and dense is not None:
        panels.append(Dots({_DENSE: list(dense.errors.values())}, "test error, %", "dense"))
    return panels


METHODS_STUDY = Study(
    name="methods",
    about="Compare several methods at several densities, each with its own distribution and all with one.",
    axes=(
        METHOD,
        Axis(
            name="distribution",
            option="distributions",
            default=f"{_OWN},uniform",
            help=f"{_OWN} (each method's own), {', '.join(DISTRIBUTIONS)}; separated by commas.",
            settings=_distribution,
            parse=_parse,
            title="distribution",
        ),
        DENSITY,
    ),
    figures=(Figure("test error", lambda cell: cell.error.text(), unit="%"), TRAINING, INFERENCE),
    note="mean ± standard error",
    settle=_settle,
    tables=_tables,
    panels=_panels,
)
