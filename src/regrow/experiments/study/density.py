"""The study of densities: accuracy of each method over them, dense training beside, and where a method reaches it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from regrow.experiments.bench.common.tables import Table
from regrow.experiments.options import split_names
from regrow.experiments.study.axes import DENSITY, METHOD, dense_of, percent
from regrow.experiments.study.intervals import differences
from regrow.experiments.study.panels import Panel
from regrow.experiments.study.study import INFERENCE, TRAINING, Cell, Figure, Study

__all__ = ["DENSITY_STUDY", "smallest_within_dense"]

_DENSE = "dense"


def smallest_within_dense(cells: Sequence[Cell], method: str) -> float | None:
    """Return the smallest density at which a method's mean accuracy is not below the 95 % interval of dense training.

    None if there is none, or dense training has fewer than two seeds, which give no interval.
    """
    dense = dense_of(cells)
    if dense is None or dense.accuracy.count < 2:
        return None
    reached = [cell.key[1] for cell in cells if cell.key[0] == method and cell.accuracy.mean >= dense.accuracy.low]
    return min(reached, default=None)


def _tables(cells: Sequence[Cell], title: str) -> list[Table]:
    dense = dense_of(cells)
    columns = ("method", "density", "test accuracy, %", "95 % interval", "seeds", "less dense")
    rows = []
    for cell in cells:
        apart = None if dense is None or cell is dense else differences(cell.accuracies, dense.accuracies)
        beside = "-" if apart is None else apart.text(sign="+")
        numbers = (cell.accuracy.text(), cell.accuracy.bounds(), str(cell.accuracy.count), beside)
        rows.append((cell.key[0], percent(cell.key[1]), *numbers, TRAINING.text(cell), INFERENCE.text(cell)))
    of_each = Table(f"{title}: mean ± standard error", (*columns, TRAINING.title, INFERENCE.title), tuple(rows))
    if dense is None:
        return [of_each]
    known, found = dense.accuracy.count > 1, []
    nothing = "none of these" if known else "unknown: one seed of dense"
    for method in dict.fromkeys(cell.key[0] for cell in cells if cell is not dense):
        smallest = smallest_within_dense(cells, method)
        found.append((method, nothing if smallest is None else percent(smallest)))
    reached = "Smallest density whose mean reaches the 95 % interval of dense"
    reached += f" ({dense.accuracy.bounds()})" if known else ""
    return [of_each, Table(reached, ("method", "density"), tuple(found))]


def _panels(cells: Sequence[Cell]) -> list[Panel]:
    """Return the plot of accuracy over density: methods as lines, dense as a band."""
    dense = dense_of(cells)
    methods = dict.fromkeys(cell.key[0] for cell in cells if cell is not dense)
    lines = {name: [(100 * cell.key[1], cell.accuracy) for cell in cells if cell.key[0] == name] for name in methods}
    panel = Panel(
        lines,
        across="density, % of weights",
        up="test accuracy, % (mean, standard error)",
        band=None if dense is None else ("dense, 95 % interval", dense.accuracy),
        logarithmic=True,
    )
    return [panel]


DENSITY_STUDY = Study(
    name="density",
    about="Compare methods over densities with dense training: where does each reach it?",
    axes=(
        replace(
            METHOD,
            default="sparse-momentum",
            help="Sparse methods, separated by commas; dense training is always beside them.",
            parse=lambda text: (_DENSE, *(name for name in split_names(text) if name != _DENSE)),
        ),
        replace(DENSITY, default="0.01,0.02,0.05,0.1,0.2"),
    ),
    figures=(Figure("test error", lambda cell: cell.error.text(), unit="%"), TRAINING, INFERENCE),
    note="mean ± standard error",
    tables=_tables,
    panels=_panels,
    picture="accuracy.png",
)
