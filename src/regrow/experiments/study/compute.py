"""The study of bounds on compute: what accuracy costs in time and multiply-adds under each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regrow.experiments.errors import UserError
from regrow.experiments.options import split_names
from regrow.experiments.study.plots import plot_accuracy_over_work
from regrow.experiments.study.study import Axis, Cell, Figure, Study
from regrow.experiments.train.config import TrainConfig
from regrow.experiments.train.result import read_metrics

__all__ = ["COMPUTE_STUDY"]

# Beside the bounds: none, layers that keep their numbers, and dense training.
_OTHERS: Mapping[str, Mapping[str, Any]] = {
    "unlimited": {},
    "keep": {"redistribute": "keep"},
    "dense": {"method": "dense"},
}
# What is kept of each epoch, in the order of the points of a curve.
_CURVE = ("seconds", "multiply_adds_train", "multiply_adds_train_dense", "valid_accuracy")


def _parse(text: str) -> tuple[str, ...]:
    names = split_names(text)
    for name in names:
        if name not in _OTHERS and _bound(name) is None:
            raise UserError(f"--bounds {text}: give numbers above 0 or {', '.join(_OTHERS)}, separated by commas")
    return names


def _bound(name: str) -> float | None:
    try:
        number = float(name)
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None


def _settings(name: str) -> Mapping[str, Any]:
    return {"compute": None, **_OTHERS[name]} if name in _OTHERS else {"compute": _bound(name)}


def _curve(folder: Path) -> Mapping[str, Any]:
    rows = read_metrics(folder)
    last = rows[-1]
    spread = last["multiply_adds"] / last["multiply_adds_dense"] / last["density"]
    return {"curve": [[row[name] for name in _CURVE] for row in rows], "times_uniform": spread}


def _of_each(value: Callable[[Mapping[str, Any]], float], digits: int) -> Callable[[Cell], str]:
    """Return what writes the mean of a value over the seeds, with its standard error where there are several."""
    return lambda cell: cell.mean(value).text(digits)


def _plot(cells: Sequence[Cell], path: Path, title: str) -> None:
    plot_accuracy_over_work({cell.key[0]: [row["curve"] for row in cell.rows] for cell in cells}, path, title)


def _check(base: TrainConfig) -> None:
    if base.method == "dense":
        raise UserError("dense training is one of the bounds: name a sparse method, or leave method out")


COMPUTE_STUDY = Study(
    name="compute",
    about="Compare bounds on compute: accuracy over time and over multiply-adds, dense training beside.",
    axes=(
        Axis(
            name="bound",
            option="bounds",
            default=f"1,1.5,2,4,{','.join(_OTHERS)}",
            help="Bounds, in multiply-adds of a uniform spread, separated by commas; also unlimited, keep, dense.",
            settings=_settings,
            parse=_parse,
            title="compute",
        ),
    ),
    figures=(
        Figure("test accuracy", _of_each(lambda row: 100 * row["test_accuracy"], 2), unit="%"),
        Figure(
            "multiply-adds of the training",
            _of_each(lambda row: 100 * row["multiply_adds_train"] / row["multiply_adds_train_dense"], 2),
            unit="% of dense",
        ),
        Figure("at the end", _of_each(lambda row: row["times_uniform"], 2), unit="times uniform"),
        Figure("training", _of_each(lambda row: row["seconds_train"], 1), unit="s"),
    ),
    note="mean ± standard error",
    check=_check,
    read=_curve,
    plot=_plot,
    picture="accuracy.png",
)
