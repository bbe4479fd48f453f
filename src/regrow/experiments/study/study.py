"""What a study is: a grid of settings, what is read of each run, and how it is shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from regrow.experiments.bench.common.tables import Table
from regrow.experiments.study.intervals import Interval, interval
from regrow.experiments.study.panels import Dots, Panel, plot_panels
from regrow.experiments.train.config import WITHOUT_DENSITY, TrainConfig, override
from regrow.experiments.train.loop import MakeRun
from regrow.experiments.train.methods import run_name
from regrow.experiments.train.run import Run

__all__ = ["INFERENCE", "OF_SPARSE_RUNS", "TRAINING", "Axis", "Cell", "Figure", "Planned", "Study", "file_name"]

OF_SPARSE_RUNS = frozenset(
    ("density", "distribution", "block", "prune", "prune_rate", "prune_rate_decay", "update_every", "grow", "growth")
) | {"redistribute", "compute", "keep_returning"}
"""Settings that say nothing of a dense training, which therefore stands once beside all their values."""


@dataclass(frozen=True)
class Axis:
    """Something that a study varies.

    Attributes:
        name: its key in `study.json`.
        option: its option on the command line.
        default: the values if none are given, as they are written there.
        help: what the option says.
        settings: the settings of a run that a value stands for.
        parse: the values that a text stands for.
        title: what tables call it.
        label: how a value is written.
        heading: how a value is written above a column.
    """

    name: str
    option: str
    default: str
    help: str
    settings: Callable[[Any], Mapping[str, Any]]
    parse: Callable[[str], tuple[Any, ...]]
    title: str
    label: Callable[[Any], str] = str
    heading: Callable[[Any], str] = str


@dataclass(frozen=True)
class Cell:
    """The runs of one point of the grid, which differ in their seeds.

    Attributes:
        key: the value of each axis.
        rows: what is known of each run.
        reference: the point that it is compared with; None where the study compares with none, or has not run it.
    """

    key: tuple[Any, ...]
    rows: tuple[Mapping[str, Any], ...]
    reference: Cell | None = None

    @property
    def errors(self) -> dict[int, float]:
        """Test error in percent by seed."""
        return {row["seed"]: 100 * (1 - row["test_accuracy"]) for row in self.rows}

    @property
    def accuracies(self) -> dict[int, float]:
        """Test accuracy in percent by seed."""
        return {row["seed"]: 100 * row["test_accuracy"] for row in self.rows}

    @cached_property
    def error(self) -> Interval:
        """Test error in percent.

        Example:
            >>> rows = {"seed": 0, "test_accuracy": 0.99}, {"seed": 1, "test_accuracy": 0.97}
            >>> Cell(("set", 0.1), rows).error.text()
            '2.00 ± 1.00'
        """
        return interval(list(self.errors.values()))

    @cached_property
    def accuracy(self) -> Interval:
        """Test accuracy in percent."""
        return interval(list(self.accuracies.values()))

    def mean(self, value: Callable[[Mapping[str, Any]], float]) -> Interval:
        """Return the mean of a number that can be told of each run."""
        return interval([value(row) for row in self.rows])


@dataclass(frozen=True)
class Figure:
    """Something that is shown of each point of the grid.

    Attributes:
        name: its name above a column.
        text: writes it.
        unit: its unit; empty if it has none.
    """

    name: str
    text: Callable[[Cell], str]
    unit: str = ""

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.name}, {self.unit}".rstrip(", ")


def _share_of_dense(kind: str) -> Callable[[Cell], str]:
    """Return what writes the mean FLOPs of a kind in percent of dense; a dash for runs that did not count them."""

    def text(cell: Cell) -> str:
        if not all(f"flops_{kind}" in row for row in cell.rows):
            return "-"
        share = cell.mean(lambda row: 100 * row[f"flops_{kind}"] / row[f"flops_{kind}_dense"]).mean
        return f"{share:.3g}"

    return text


TRAINING = Figure("training FLOPs", _share_of_dense("train"), unit="% of dense")
INFERENCE = Figure("inference FLOPs", _share_of_dense("inference"), unit="% of dense")


@dataclass(frozen=True)
class Planned:
    """A run of a study.

    Attributes:
        config: its settings.
        points: the value of each axis by name, for each point of the grid that it stands for.
    """

    config: TrainConfig
    points: tuple[Mapping[str, Any], ...]


def _no_check(_: TrainConfig) -> None:
    """Refuse nothing."""


def _nothing_more(_: Path) -> Mapping[str, Any]:
    return {}


def _as_they_are(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return settings


@dataclass(frozen=True)
class Study:
    """A kind of study.

    Attributes:
        name: its name on the command line.
        about: what it says of itself there.
        axes: what it varies beside the seed; the last one lies across the Markdown table.
        figures: what is shown of each point.
        note: what the figures are, for the title of the table.
        shared: settings of every run.
        check: refuses settings that do not fit, with a `UserError`.
        settle: from the settings of a point to those it is run with; points with equal ones share a run. A dense
            training is always run without the settings of sparse ones.
        make_run: makes a run from its settings and the folder with the data sets.
        read: what is read of a finished run's folder beside its result.
        reference: the key of the point that a point is compared with, by its own key; None compares nothing.
        tables: tables of the points, under a title; None makes one from `figures`.
        panels: plots of the points; None leaves it to `plot`.
        plot: draws the points into a PNG file, under a title; None draws nothing.
        picture: name of that file.
    """

    name: str
    about: str
    axes: tuple[Axis, ...]
    figures: tuple[Figure, ...]
    note: str
    shared: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[TrainConfig], None] = _no_check
    settle: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _as_they_are
    make_run: MakeRun = Run
    read: Callable[[Path], Mapping[str, Any]] = _nothing_more
    reference: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None
    tables: Callable[[Sequence[Cell], str], Sequence[Table]] | None = None
    panels: Callable[[Sequence[Cell]], Sequence[Panel | Dots]] | None = None
    plot: Callable[[Sequence[Cell], Path, str], None] | None = None
    picture: str = "errors.png"

    def runs(self, base: TrainConfig, values: Mapping[str, Sequence[Any]], seeds: Sequence[int]) -> dict[str, Planned]:
        """Return every run by the name of its folder: one seed of all before the next seed, dense once for each seed.

        Args:
            base: the settings they share.
            values: the values of each axis by its name.
            seeds: the seeds.

        Raises:
            UserError: if a setting does not fit.
        """
        runs: dict[str, Planned] = {}
        for seed, *point in product(seeds, *(values[axis.name] for axis in self.axes)):
            changes = dict(self.shared)
            for axis, value in zip(self.axes, point, strict=True):
                changes |= axis.settings(value)
            changes = dict(self.settle(changes))
            if changes.get("method", base.method) == "dense":
                changes = {n: v for n, v in changes.items() if n in self.shared or n not in OF_SPARSE_RUNS}
            elif changes.get("method", base.method) in WITHOUT_DENSITY:
                changes["density"] = 1.0  # whatever the density of the others
            config = override(base, {**changes, "seed": seed})
            named = {axis.name: value for axis, value in zip(self.axes, point, strict=True)}
            name = self._folder(config, base, changes)
            before = runs[name].points if name in runs else ()
            runs[name] = Planned(config, before if named in before else (*before, named))
        return runs

    def _folder(self, config: TrainConfig, base: TrainConfig, changes: Mapping[str, Any]) -> str:
        """Return the name of a run's folder: that of the run, and what it differs in that does not stand there."""
        name = run_name(config)
        for setting, value in changes.items():
            before = getattr(base, setting)
            if setting in self.shared or value == before:
                continue
            if run_name(config.model_copy(update={setting: before})) == run_name(config):
                name += f"-{setting}-{file_name(value)}"
        return name

    def rows(self, planned: Planned, result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return a finished run as a row for each point that it stands for, once for equal ones.

        Args:
            planned: the run.
            result: its result, and what else was read of it.
        """
        rows = {}
        for point in planned.points:
            row = {**point, **result}
            rows[tuple(row[axis.name] for axis in self.axes)] = row
        return list(rows.values())

    def collect(self, rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
        """Group runs by their point of the grid, in the order in which they first appear, each with its reference.

        Args:
            rows: of each run its result, with the value of each axis by its name.
        """
        cells: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for row in rows:
            cells.setdefault(tuple(row[axis.name] for axis in self.axes), []).append(row)
        found = {key: Cell(key, tuple(members)) for key, members in cells.items()}
        if self.reference is None:
            return list(found.values())
        return [replace(cell, reference=found.get(self.reference(key))) for key, cell in found.items()]

    def draw(self, cells: Sequence[Cell], folder: Path, title: str) -> None:
        """Draw the points into the study's picture in a folder."""
        if self.panels is not None:
            plot_panels(self.panels(cells), folder / self.picture, title)
        elif self.plot is not None:
            self.plot(cells, folder / self.picture, title)

    def shown(self, cells: Sequence[Cell], title: str) -> list[Table]:
        """Return the tables for the terminal: the study's own, or one with a row for each point."""
        if self.tables is not None:
            return list(self.tables(cells, title))
        columns = (*(axis.title for axis in self.axes), *(figure.title for figure in self.figures), "seeds")
        rows = [
            (
                *(axis.label(value) for axis, value in zip(self.axes, cell.key, strict=True)),
                *(figure.text(cell) for figure in self.figures),
                str(len(cell.rows)),
            )
            for cell in cells
        ]
        return [Table(f"{title}: {self.note}", columns, tuple(rows))]

    def markdown(self, cells: Sequence[Cell], title: str = "") -> str:
        """Return the tables as Markdown.

        Where the study has none of its own: the values of the last axis across, all others down; those of a single axis
        down.
        """
        if self.tables is not None:
            return "\n".join(table.markdown() for table in self.tables(cells, title)).rstrip()
        if len(self.axes) == 1:
            return self._list(cells)
        *down, across = self.axes
        columns = sorted({cell.key[-1] for cell in cells})
        titles = [
            *(axis.title for axis in down),
            *(title for value in columns for title in self._titles(across, value)),
        ]
        lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        for key in dict.fromkeys(cell.key[:-1] for cell in cells):
            found = {cell.key[-1]: cell for cell in cells if cell.key[:-1] == key}
            labels = [axis.label(value) for axis, value in zip(down, key, strict=True)]
            texts = [figure.text(found[v]) if v in found else "" for v in columns for figure in self.figures]
            lines.append(f"| {' | '.join([*labels, *texts])} |")
        return "\n".join(lines)

    def _list(self, cells: Sequence[Cell]) -> str:
        """Return a Markdown table with a line for each value of the only axis."""
        axis = self.axes[0]
        titles = [axis.title, *(figure.title for figure in self.figures)]
        lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        for cell in cells:
            texts = (axis.label(cell.key[0]), *(figure.text(cell) for figure in self.figures))
            lines.append(f"| {' | '.join(texts)} |")
        return "\n".join(lines)

    def _titles(self, axis: Axis, value: Any) -> list[str]:
        """Return the titles of a value's columns: one for each figure, named where there are several."""
        first, *others = (figure.name for figure in self.figures)
        heading = axis.heading(value)
        return [f"{heading}: {first}", *others] if others else [heading]


def file_name(value: object) -> str:
    """Return a value as a part of a file's name.

    Example:
        >>> file_name("my method.py:recipe")
        'my-method.py-recipe'
    """
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")
