"""Whole training steps of sparse networks beside dense ones, in turn in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from torch import nn

import regrow
from regrow.experiments.bench.common.progress import Progress
from regrow.experiments.bench.common.spreads import Spread, ratios, spread
from regrow.experiments.bench.common.turns import take_turns
from regrow.experiments.bench.steps.breakdown import profile
from regrow.experiments.bench.steps.contenders import Contenders, Sparse, prepare
from regrow.experiments.bench.steps.estimate import estimate, observe
from regrow.experiments.bench.steps.peak import peaks
from regrow.experiments.bench.steps.report import EAGER, FILE, Beside, Report, Row, Settings, Stored
from regrow.experiments.bench.steps.state import state_of
from regrow.experiments.bench.steps.training import (
    BFLOAT16,
    DENSE,
    SPARSE,
    SPARSE_BFLOAT16,
    dense_model,
    make_batches,
    recipe_of,
)
from regrow.experiments.bench.steps.update_cost import UpdateCost, settle, update_cost
from regrow.experiments.train.config import TrainConfig
from regrow.experiments.train.growth import growth_name

__all__ = ["measure", "run"]


def run(report: Report, configs: Sequence[TrainConfig], *, out: Path | None, progress: Progress[Row]) -> None:
    """Measure what the report lacks of these settings, row by row.

    Args:
        report: gets the rows.
        configs: a preset's settings with a density each.
        out: JSON file that is written after every row; None writes none.
        progress: told of each row.

    Raises:
        WrongResultError: if a sparse network computes another loss than masked storage.
    """
    cases = {
        f"{config.preset} at {config.density:.3g}": (
            None if report.row(config.preset, config.density) else partial(measure, config, report.settings)
        )
        for config in configs
    }
    FILE.fill(report, cases, out=out, progress=progress)


def measure(config: TrainConfig, settings: Settings) -> Row:
    """Check and time one preset at one density.

    Args:
        config: the preset's settings, with method, density, growth and batch as they are to be measured.
        settings: how to measure.

    Raises:
        WrongResultError: if a sparse network computes another loss than masked storage.
        ValueError: if the storage cannot hold the network.
    """
    batches = make_batches(config)
    contenders = prepare(config, dense_model(config), batches, settings)
    dense, sparse = contenders.dense, contenders.sparse
    updated = {name: settle(each.training, each.config, settings.updates) for name, each in sparse.items()}
    layers = {name: _stored(each.training.model) for name, each in sparse.items()}
    steps = {name: each.step for name, each in contenders.trainings.items()}
    times = take_turns(steps, settings.rounds, settings.seconds)
    eager, main = dense[DENSE].eager, sparse[SPARSE]
    breakdown = {name: profile(each.training.step, settings.profiled) for name, each in sparse.items()}
    breakdown[f"{DENSE} {EAGER}"] = profile(eager.step, settings.profiled)
    state = {**{name: state_of(each.training) for name, each in sparse.items()}, DENSE: state_of(eager)}
    estimated = estimate(observe(eager.model, main.training.model, batches.images[0]))
    own = {name: _beside(name, each, layers[name], times) for name, each in sparse.items()}
    first = own.pop(SPARSE)
    peak, unmeasured = _peaks(contenders) if settings.peaks else ({}, {})
    half = dense.get(BFLOAT16)
    return Row(
        preset=config.preset,
        density=config.density,
        batch=config.batch_size,
        method=_method(config),
        growth=growth_name(recipe_of(main.config).growth),
        updates_before=updated[SPARSE],
        layers=first.layers,
        dense_form=dense[DENSE].form,
        dense_forms=dense[DENSE].milliseconds,
        milliseconds={name: spread(each) for name, each in times.items()},
        sparse_step=first.sparse_step,
        ratio={
            **{name: _ratio(times[name], times[SPARSE], first.updates) for name in dense},
            **{name: ratios(times[name], times[SPARSE]) for name in contenders.peers},
        },
        updates=first.updates,
        breakdown=breakdown,
        state=state,
        estimated=estimated,
        left_out={**contenders.left_out, **unmeasured},
        bfloat16_form=half.form if half else "",
        bfloat16_forms=half.milliseconds if half else {},
        peak=peak,
        beside=own,
    )


def _beside(name: str, sparse: Sparse, layers: tuple[Stored, ...], times: Mapping[str, Sequence[float]]) -> Beside:
    """Time the updates of a sparse training, and return its step with their share."""
    updates = update_cost(sparse.training, sparse.config)
    ratio = _ratio(times[DENSE], times[name], updates)
    half = _ratio(times[BFLOAT16], times[name], updates) if BFLOAT16 in times else None
    return Beside(layers, median(times[name]) / (1 - updates.share), ratio, updates, half)


def _ratio(times: Sequence[float], sparse: Sequence[float], updates: UpdateCost) -> Spread:
    """Return the spread of times over those of the sparse steps with their share of updates, round by round."""
    return ratios(times, sparse, 1 / (1 - updates.share))


def _method(config: TrainConfig) -> str:
    """Return the method and how it redistributes weights, where that is not the method's own way."""
    kept = "" if config.redistribute == "method" else f", {config.redistribute}"
    return config.method + kept + ("" if config.compute is None else f", compute {config.compute:g}")


def _stored(model: nn.Module) -> tuple[Stored, ...]:
    return tuple(
        Stored(layer.name, layer.storage, layer.density, layer.gain, layer.reason)
        for layer in regrow.summary(model).layers
    )


def _peaks(contenders: Contenders) -> tuple[dict[str, int], dict[str, str]]:
    """Return the peak memory of each contender by name, and of what could not be measured, why.

    To `peaks` all sparse ones have one of two names, which their own takes the place of.
    """
    found: dict[str, int] = {}
    left_out: dict[str, str] = {}
    for name, each in contenders.sparse.items():
        own = SPARSE_BFLOAT16 if each.bfloat16 else SPARSE
        kinds = (own, *contenders.dense) if name == SPARSE else (own,)
        measured, failed = peaks(each.config, kinds, each.backend)
        found |= {kind.replace(own, name, 1): size for kind, size in measured.items()}
        left_out |= {f"peak memory, {kind.replace(own, name, 1)}": why for kind, why in failed.items()}
    return found, left_out
