"""What a study is: a grid of settings, what is read of each run, and how it is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from regrow.experiments.errors import UserError
from regrow.experiments.files import write_text
from regrow.experiments.study.runner import run_all
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.loop import MakeRun
from regrow.experiments.train.methods import check_method, run_name
from regrow.experiments.train.run import Run

__all__ = ["Axis", "Cell", "Figure", "Study", "run_study"]

_IN_RUN_NAME = frozenset(
    ("method", "prune", "grow", "prune_rate_decay", "redistribute", "compute", "growth", "block", "density", "seed")
)


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

    @cached_property
    def errors(self) -> tuple[float, ...]:
        """Test error of each seed in percent."""
        return tuple(100 * (1 - row["test_accuracy"]) for row in self.rows)

    @property
    def accuracies(self) -> dict[int, float]:
        """Test accuracy in percent by seed."""
        return {row["seed"]: 100 * row["test_accuracy"] for row in self.rows}

    @property
    def mean(self) -> float:
        """Mean error in percent."""
        return mean(self.errors)

    @property
    def deviation(self) -> float:
        """Standard deviation of the error in percent; 0 for one seed, which says nothing of it."""
        return stdev(self.errors) if len(self.errors) > 1 else 0.0

    @property
    def standard_error(self) -> float:
        """Standard error of the mean in percent; 0 for one seed, which says nothing of it."""
        return float(self.deviation / len(self.errors) ** 0.5)

    def error_with(self, spread: float) -> str:
        """Return the mean error with a spread, which one seed does not have.

        Example:
            >>> Cell(("set", 0.1), ({"test_accuracy": 0.99}, {"test_accuracy": 0.97})).error_with(1.0)
            '2.00 ± 1.00'
        """
        return f"{self.mean:.2f} ± {spread:.2f}" if len(self.errors) > 1 else f"{self.mean:.2f}"


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


@dataclass(frozen=True)
class Planned:
    """A run of a study.

    Attributes:
        config: its settings.
        point: the value of each axis by name.
    """

    config: TrainConfig
    point: Mapping[str, Any]


def _no_check(_: TrainConfig) -> None:
    """Refuse nothing."""


def _nothing_more(_: Path) -> Mapping[str, Any]:
    return {}


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
        make_run: makes a run from its settings and the folder with the data sets.
        read: what is read of a finished run's folder beside its result.
        reference: the key of the point that a point is compared with, by its own key; None compares nothing.
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
    make_run: MakeRun = Run
    read: Callable[[Path], Mapping[str, Any]] = _nothing_more
    reference: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None
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
            varied = [name for name in changes if name not in self.shared and name not in _IN_RUN_NAME]
            if changes.get("method") == "dense":
                changes["density"] = 1.0  # whatever the density of the others
            config = override(base, {**changes, "seed": seed})
            named = {axis.name: value for axis, value in zip(self.axes, point, strict=True)}
            name = run_name(config) + "".join(f"-{key}-{_file_name(changes[key])}" for key in varied)
            runs.setdefault(name, Planned(config, named))
        return runs

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

    def table(self, cells: Sequence[Cell], title: str) -> Table:
        """Return a table for the terminal: a row for each point."""
        figures = (f"{figure.name} {figure.unit}".rstrip() for figure in self.figures)
        table = Table(*(axis.title for axis in self.axes), *figures, "seeds", title=f"{title}: {self.note}")
        for cell in cells:
            labels = (axis.label(value) for axis, value in zip(self.axes, cell.key, strict=True))
            table.add_row(*labels, *(figure.text(cell) for figure in self.figures), str(len(cell.rows)))
        return table

    def markdown(self, cells: Sequence[Cell]) -> str:
        """Return a Markdown table: the values of the last axis across, all others down; those of a single axis down."""
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
        titles = [axis.title, *(f"{figure.name}, {figure.unit}".rstrip(", ") for figure in self.figures)]
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


def run_study(
    study: Study,
    base: TrainConfig,
    values: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    out: Path,
    *,
    data_root: Path | None = None,
    jobs: int = 1,
    console: Console | None = None,
) -> Table:
    """Run what is missing of a study, write `study.json`, `table.md` and the plot, and return the table.

    Each run has a folder of its own in `out`; finished ones are kept and unfinished ones go on.

    Args:
        study: what is studied.
        base: the settings that all runs share.
        values: the values of each axis by its name.
        seeds: the seeds.
        out: folder of the study.
        data_root: folder with the data sets; None looks in the usual places.
        jobs: runs at a time; each takes its share of the cores.
        console: where to show progress; nothing is shown unless it is a terminal.

    Raises:
        UserError: if a setting does not fit, the grid is empty, or `out` holds runs with other settings.
    """
    study.check(base)
    runs = study.runs(base, values, seeds)
    if not runs:
        raise UserError(f"study {study.name}: give at least one seed and one value of each of its options")
    for method in dict.fromkeys(run.config.method for run in runs.values()):
        check_method(method)
    configs = {out / name: run.config for name, run in runs.items()}
    results = run_all(configs, data_root=data_root, jobs=jobs, console=console, make_run=study.make_run)
    rows = [
        {**run.point, **study.read(out / name), **result}
        for (name, run), result in zip(runs.items(), results, strict=True)
    ]
    cells = study.collect(rows)
    write_text(out / "study.json", json.dumps(rows, indent=1) + "\n")
    write_text(out / "table.md", study.markdown(cells) + "\n")
    if study.plot is not None:
        study.plot(cells, out / study.picture, base.preset)
    return study.table(cells, base.preset)


def _file_name(value: object) -> str:
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")
