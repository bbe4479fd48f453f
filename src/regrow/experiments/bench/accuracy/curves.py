"""Time to accuracy: dense and sparse training with the same budget of epochs and seeds, and the wall time of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from statistics import mean

from rich.console import Console

from regrow.experiments.bench.common.machine import Machine, describe
from regrow.experiments.bench.common.tables import Table
from regrow.experiments.errors import UserError
from regrow.experiments.files import write_text
from regrow.experiments.study.plots import plot_accuracy_over_time
from regrow.experiments.study.runner import Failure, run_all
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.methods import run_name
from regrow.experiments.train.result import read_metrics

__all__ = ["Curve", "Point", "bench_accuracy", "levels", "runs_table", "time_to", "times_table"]

DENSE, SPARSE = "dense", "sparse"
_LEVELS = (0.5, 0.75, 0.9, 0.95, 1.0)  # of what every run reaches


@dataclass(frozen=True)
class Point:
    """Where a run stands after an epoch.

    Attributes:
        seconds: wall time of its training steps so far; evaluation is not in it.
        accuracy: on the validation set.
    """

    seconds: float
    accuracy: float


@dataclass(frozen=True)
class Curve:
    """A finished run.

    Attributes:
        kind: dense or sparse.
        seed: its seed.
        points: one for each epoch.
        test_accuracy: at the end.
    """

    kind: str
    seed: int
    points: tuple[Point, ...]
    test_accuracy: float


def time_to(points: Sequence[Point], accuracy: float) -> float | None:
    """Return the seconds at the end of the first epoch that reaches an accuracy; None if none does.

    Example:
        >>> time_to([Point(1.0, 0.5), Point(2.0, 0.8), Point(3.0, 0.7)], 0.7)
        2.0
    """
    return next((point.seconds for point in points if point.accuracy >= accuracy), None)


def levels(curves: Sequence[Curve]) -> tuple[float, ...]:
    """Return accuracies that every run reaches, up to the best of the weakest run, in whole percents.

    Example:
        >>> levels([Curve("dense", 0, (Point(1.0, 0.805),), 0.8), Curve("sparse", 0, (Point(1.0, 0.9),), 0.9)])
        (0.4, 0.6, 0.72, 0.76, 0.8)
    """
    best = min(max(point.accuracy for point in curve.points) for curve in curves)
    return tuple(dict.fromkeys(floor(100 * best * share + 1e-9) / 100 for share in _LEVELS))


def bench_accuracy(
    base: TrainConfig,
    seeds: int,
    out: Path,
    *,
    accuracies: Sequence[float] = (),
    data_root: Path | None = None,
    console: Console | None = None,
) -> list[Table]:
    """Train what is missing, write `accuracy.json`, `accuracy.md` and `accuracy.png`, and return the tables.

    Each run is one of `regrow train` with a folder of its own in `out`; finished ones are kept and unfinished ones go
    on. Dense and sparse take turns, seed by seed, one run at a time.

    Args:
        base: the settings of the sparse runs; the dense ones share what fits them.
        seeds: how many, from 0.
        out: the folder.
        accuracies: which accuracies to give the times of, in [0, 1]; none takes some that every run reaches.
        data_root: folder with the data sets; None looks in the usual places.
        console: where to show progress; nothing is shown unless it is a terminal.

    Raises:
        UserError: if a setting does not fit, or `out` holds runs with other settings or made on another machine.
    """
    if base.method == DENSE:
        raise UserError("dense training is always measured: name a sparse --method beside it")
    configs = [config for seed in range(seeds) for config in _pair(base, seed)]
    machine = _same_machine(out)
    runs = {out / run_name(config): config for _, config in configs}
    results = []
    for outcome in run_all(runs, data_root=data_root, jobs=1, console=console):  # one at a time: they are timed
        if isinstance(outcome, Failure):
            raise UserError(outcome.message)
        results.append(outcome)
    curves = [
        Curve(kind, config.seed, _points(out / run_name(config)), result["test_accuracy"])
        for (kind, config), result in zip(configs, results, strict=True)
    ]
    chosen = tuple(accuracies) or levels(curves)
    found = [times_table(curves, chosen), runs_table(curves)]
    title = f"{base.preset} at {100 * base.density:g} %, {base.epochs} epochs"
    backends = "+".join(dict.fromkeys(result["backend"] for result in results if result["method"] != DENSE))
    how = (
        f"{machine}. Sparse: {base.method} at {base.density:g}, backend {backends}, growth "
        f"{base.growth or 'as the method has it'}, redistribution {base.redistribute}. "
        f"Batch {base.batch_size}. Seconds are those of the training steps, topology updates included, evaluation not."
    )
    text = "\n".join([f"## {title}", "", how, "", *(table.markdown() for table in found)])
    figures = {"machine": str(machine), "accuracies": chosen, "runs": [_as_json(curve) for curve in curves]}
    write_text(out / "accuracy.json", json.dumps(figures, indent=1) + "\n")
    write_text(out / "accuracy.md", text)
    lines = {
        kind: [[(point.seconds, point.accuracy) for point in curve.points] for curve in curves if curve.kind == kind]
        for kind in (DENSE, SPARSE)
    }
    plot_accuracy_over_time(lines, out / "accuracy.png", title)
    return found


def times_table(curves: Sequence[Curve], accuracies: Sequence[float]) -> Table:
    """Return the mean seconds to each accuracy over the seeds that reach it, and the ratio where all do."""
    rows = []
    for accuracy in accuracies:
        times = {kind: [time_to(c.points, accuracy) for c in curves if c.kind == kind] for kind in (DENSE, SPARSE)}
        means = {kind: _mean(each) for kind, each in times.items()}
        dense, sparse = means[DENSE], means[SPARSE]
        ratio = (
            "-" if dense is None or not sparse or None in (*times[DENSE], *times[SPARSE]) else f"{dense / sparse:.2f}x"
        )
        rows.append((f"{accuracy:.1%}", *(_time(times[kind], means[kind]) for kind in (DENSE, SPARSE)), ratio))
    columns = ("validation accuracy", "dense s", "sparse s", "dense / sparse")
    return Table("Seconds of training to an accuracy: mean (seeds that reach it)", columns, tuple(rows))


def runs_table(curves: Sequence[Curve]) -> Table:
    """Return what each run reached, and in what time."""
    return Table(
        "Runs",
        ("run", "seconds", "best validation accuracy", "test accuracy"),
        tuple(
            (
                f"{curve.kind}, seed {curve.seed}",
                f"{curve.points[-1].seconds:.1f}",
                f"{max(point.accuracy for point in curve.points):.2%}",
                f"{curve.test_accuracy:.2%}",
            )
            for curve in curves
        ),
    )


def _pair(base: TrainConfig, seed: int) -> list[tuple[str, TrainConfig]]:
    own = {"growth": None, "redistribute": "method", "backend": "auto"}  # of sparse training alone
    dense = override(base, {"method": "dense", "seed": seed, **own})
    return [(DENSE, dense), (SPARSE, override(base, {"seed": seed}))]


def _points(folder: Path) -> tuple[Point, ...]:
    return tuple(Point(row["seconds"], row["valid_accuracy"]) for row in read_metrics(folder))


def _same_machine(out: Path) -> Machine:
    """Return this machine, once it is noted in the folder; times of two machines say nothing beside each other."""
    machine, note = describe(), out / "machine.txt"
    if note.exists() and note.read_text().strip() != str(machine):
        raise UserError(f"{out} was begun with {note.read_text().strip()}, and this is {machine}: take another --out")
    write_text(note, f"{machine}\n")
    return machine


def _as_json(curve: Curve) -> Mapping[str, object]:
    points = [{"seconds": point.seconds, "accuracy": point.accuracy} for point in curve.points]
    return {"kind": curve.kind, "seed": curve.seed, "test_accuracy": curve.test_accuracy, "points": points}


def _mean(times: Sequence[float | None]) -> float | None:
    reached = [time for time in times if time is not None]
    return mean(reached) if reached else None


def _time(times: Sequence[float | None], average: float | None) -> str:
    reached = sum(time is not None for time in times)
    return f"never (0 of {len(times)})" if average is None else f"{average:.1f} ({reached} of {len(times)})"
