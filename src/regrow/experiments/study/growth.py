"""The study of growth sources: what training loses when growth looks at less, and how much it grows otherwise.

Masked storage throughout: there the momentum of all absent weights is at hand, to compare with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regrow.experiments.errors import UserError
from regrow.experiments.options import split_names
from regrow.experiments.study.axes import DENSITY
from regrow.experiments.study.overlap import ComparedRun
from regrow.experiments.study.study import TRAINING, Axis, Cell, Figure, Study
from regrow.experiments.train.config import TrainConfig
from regrow.experiments.train.result import read_metrics

__all__ = ["GROWTH_STUDY", "in_common"]

# Beside the sources of sparse momentum: methods that look at no absent weight.
_BLIND = ("static", "set")
_SOURCES = (
    *_BLIND, "candidates:44:1", "candidates:44:3", "window:1", "window:10", "window:22", "window:44", "exact",
)  # fmt: skip
_COUNTS = ("grown_by_layer", "in_common_by_layer")


def in_common(cell: Cell) -> float | None:
    """Return the share of the positions grown that exact growth would have grown too, over all seeds and layers.

    None if nothing was grown.
    """
    grown, common = (sum(sum(row[name].values()) for row in cell.rows) for name in _COUNTS)
    return common / grown if grown else None


def _share(cell: Cell) -> str:
    share = in_common(cell)
    return "-" if share is None else f"{share:.3f}"


def _settings(source: str) -> Mapping[str, Any]:
    return {"method": source} if source in _BLIND else {"method": "sparse-momentum", "growth": source}


def _counts(folder: Path) -> Mapping[str, Any]:
    last = read_metrics(folder)[-1]
    return {name: last[name] for name in _COUNTS}


def _needs_momentum(base: TrainConfig) -> None:
    if base.momentum == 0:
        raise UserError("this study compares sources of momentum: leave momentum above 0")


GROWTH_STUDY = Study(
    name="growth",
    about="Compare sources of growth: test error, and the share of grown weights in common with exact growth.",
    axes=(
        Axis(
            name="source",
            option="sources",
            default=",".join(_SOURCES),
            help="Sources of growth, separated by commas.",
            settings=_settings,
            parse=split_names,
            title="growth",
        ),
        DENSITY,
    ),
    figures=(
        Figure("test error", lambda cell: cell.error.text(spread=cell.error.deviation), unit="%"),
        Figure("in common", _share),
        TRAINING,
    ),
    note="mean ± deviation",
    # One schedule for all, so that nothing but what grows differs.
    shared={"backend": "masked", "distribution": "uniform", "prune_rate": 0.5, "prune_rate_decay": "cosine"},
    check=_needs_momentum,
    make_run=ComparedRun,
    read=_counts,
)
