"""A measurement of many layers at many densities, which can be stopped and gone on with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from regrow.experiments.bench.common.machine import Machine
from regrow.experiments.bench.common.progress import Progress
from regrow.experiments.bench.common.report_file import ReportFile
from regrow.experiments.bench.layers.contenders import Contender, units
from regrow.experiments.bench.layers.measure import Row, measure
from regrow.experiments.bench.layers.problem import Problem, Shape
from regrow.experiments.bench.layers.rates import Rates

__all__ = ["FILE", "Report", "Settings", "run"]


@dataclass(frozen=True)
class Settings:
    """How it is measured.

    Attributes:
        rounds: rounds for each layer and density, at most.
        seconds: no new round begins after so many.
        clock: `wall`, or `processor` for the processor time of a single thread.
        rivals: who computes beside regrow and dense.
        blocks: units that regrow computes with too, outputs and inputs of each.
    """

    rounds: int
    seconds: float
    clock: str
    rivals: tuple[str, ...]
    blocks: tuple[tuple[int, int], ...] = ()

    @property
    def read_clock(self) -> Callable[[], float]:
        """What returns the seconds."""
        return time.perf_counter if self.clock == "wall" else time.process_time


@dataclass
class Report:
    """All figures of a measurement, as its JSON file holds them.

    Attributes:
        machine: what it ran on.
        rates: the most that this machine reached.
        settings: how it was measured.
        missing: rivals that are not installed, and why.
        rows: one for each layer and density.
    """

    machine: Machine
    rates: Rates
    settings: Settings
    missing: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def row(self, shape: Shape, density: float) -> Row | None:
        """Return the row of a layer at a density, if it is measured."""
        found = [row for row in self.rows if row.shape == shape and row.density == density]
        return found[0] if found else None


FILE = ReportFile(Report, "layers")
"""The JSON files of such measurements."""


def run(
    report: Report,
    shapes: Sequence[Shape],
    densities: Sequence[float],
    rivals: Sequence[Contender],
    *,
    out: Path | None,
    progress: Progress[Row],
) -> None:
    """Measure what the report lacks of these layers at these densities, row by row.

    Args:
        report: gets the rows.
        shapes: the layers.
        densities: shares of the weights that exist.
        rivals: who computes them beside regrow and dense; units are those of the settings.
        out: JSON file that is written after every row; None writes none.
        progress: told of each row.

    Raises:
        WrongResultError: if the kernels' results are wrong.
    """
    settings = report.settings

    def measured(shape: Shape, density: float) -> Row:
        problem, clock = Problem(shape, density), settings.read_clock
        beside = [*map(units, settings.blocks), *rivals]
        return measure(problem, beside, report.rates, rounds=settings.rounds, seconds=settings.seconds, clock=clock)

    cases = {
        f"{shape.network} {shape} at {density:.3g}": (
            None if report.row(shape, density) else partial(measured, shape, density)
        )
        for density in densities
        for shape in shapes
    }
    FILE.fill(report, cases, out=out, progress=progress)
