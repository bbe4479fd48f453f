"""Whole training steps of sparse networks beside dense ones, in turn in one process."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from torch import nn

import regrow
from regrow.experiments.bench.common.progress import Progress
from regrow.experiments.bench.common.spreads import ratios, spread
from regrow.experiments.bench.common.turns import FEWEST_ROUNDS, take_turns
from regrow.experiments.bench.steps.breakdown import profile
from regrow.experiments.bench.steps.check import check
from regrow.experiments.bench.steps.compile import CompileError, compile_training
from regrow.experiments.bench.steps.estimate import estimate, observe
from regrow.experiments.bench.steps.peak import peaks
from regrow.experiments.bench.steps.peer_networks import PEERS
from regrow.experiments.bench.steps.report import COMPILED, EAGER, FILE, Report, Row, Settings, Stored
from regrow.experiments.bench.steps.state import state_of
from regrow.experiments.bench.steps.training import (
    BFLOAT16,
    DENSE,
    SPARSE,
    Batches,
    Training,
    dense_model,
    dense_training,
    make_batches,
    recipe_of,
    sparse_model,
    sparse_training,
)
from regrow.experiments.bench.steps.update_cost import settle, update_cost
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.growth import growth_name

__all__ = ["measure", "run"]

_BESIDE_GROWTH = "window:22"


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
        WrongResultError: if the sparse network computes another loss than masked storage.
        ValueError: if the storage cannot hold the network.
    """
    batches = make_batches(config)
    model = dense_model(config)
    sparse_net = sparse_model(config, model, batches, settings.backend)
    check(model, sparse_net, batches, config)
    if not any(layer.storage == SPARSE for layer in regrow.summary(sparse_net).layers):
        config = override(config, {"growth": "exact"})  # masked storage has all that growth reads
    dense = dense_training(config, deepcopy(model), batches)
    full = _faster(dense, config, batches, settings)
    half = _faster(
        dense_training(config, deepcopy(model), batches, bfloat16=True), config, batches, settings, bfloat16=True
    )
    others, left_out = _others(config, model, sparse_net, batches, settings)
    left_out = {**full.left_out, **half.left_out, **left_out}
    sparse = sparse_training(config, sparse_net, batches)
    updated = settle(sparse, config, settings.updates)
    layers = _stored(sparse_net)
    contenders = {DENSE: full.training, SPARSE: sparse, BFLOAT16: half.training, **others}
    times = take_turns({name: each.step for name, each in contenders.items()}, settings.rounds, settings.seconds)
    breakdown = {
        SPARSE: profile(sparse.step, settings.profiled),
        f"{DENSE} {EAGER}": profile(dense.step, settings.profiled),
    }
    state = {SPARSE: state_of(sparse), DENSE: state_of(dense)}
    estimated = estimate(observe(dense.model, sparse_net, batches.images[0]))
    updates = update_cost(sparse, config)
    factor = 1 / (1 - updates.share)
    peak: dict[str, int] = {}
    if settings.peaks:
        peak, failed = peaks(config, (SPARSE, DENSE, BFLOAT16), settings.backend)
        left_out |= {f"peak memory, {name}": why for name, why in failed.items()}
    return Row(
        preset=config.preset,
        density=config.density,
        batch=config.batch_size,
        method=config.method + ("" if config.redistribute == "method" else f", {config.redistribute}"),
        growth=growth_name(recipe_of(config).growth),
        updates_before=updated,
        layers=layers,
        dense_form=full.form,
        dense_forms=full.milliseconds,
        milliseconds={name: spread(each) for name, each in times.items()},
        sparse_step=median(times[SPARSE]) * factor,
        ratio={
            name: ratios(each, times[SPARSE], 1.0 if name in others else factor)
            for name, each in times.items()
            if name != SPARSE
        },
        updates=updates,
        breakdown=breakdown,
        state=state,
        estimated=estimated,
        left_out=left_out,
        bfloat16_form=half.form,
        bfloat16_forms=half.milliseconds,
        peak=peak,
    )


def _stored(model: nn.Module) -> tuple[Stored, ...]:
    return tuple(
        Stored(layer.name, layer.storage, layer.density, layer.gain, layer.reason)
        for layer in regrow.summary(model).layers
    )


def _others(
    config: TrainConfig, model: nn.Module, sparse: nn.Module, batches: Batches, settings: Settings
) -> tuple[dict[str, Training], dict[str, str]]:
    """Return the trainings beside, all stored sparsely and of other libraries, and for those that cannot, why."""
    found, left_out = {}, {}
    if settings.all_sparse:
        beside = override(config, {"growth": _BESIDE_GROWTH})
        all_sparse = sparse_training(beside, sparse_model(beside, model, batches, "cpu"), batches)
        settle(all_sparse, beside, settings.updates)
        found[f"cpu, {_BESIDE_GROWTH}"] = all_sparse
    for peer in settings.peers:
        try:
            found[peer] = PEERS[peer](config, model, regrow.masks(sparse), batches)
        except (ImportError, RuntimeError, ValueError) as error:
            left_out[peer] = " ".join(str(error).split())[:160]
    return found, left_out


@dataclass(frozen=True)
class _Faster:
    """The faster form of a dense training: its name, the milliseconds of each form, and what was left out, and why."""

    form: str
    training: Training
    milliseconds: dict[str, float]
    left_out: dict[str, str]


def _faster(
    eager: Training, config: TrainConfig, batches: Batches, settings: Settings, *, bfloat16: bool = False
) -> _Faster:
    forms, left_out = {EAGER: eager}, {}
    if settings.compile_seconds > 0:
        try:
            forms[COMPILED] = compile_training(eager, config, batches, settings.compile_seconds, bfloat16=bfloat16)
        except CompileError as error:
            left_out[f"{BFLOAT16 if bfloat16 else DENSE} compiled"] = str(error)
    times = take_turns({name: each.step for name, each in forms.items()}, FEWEST_ROUNDS, 0)
    medians = {name: median(each) for name, each in times.items()}
    form = min(medians, key=lambda name: medians[name])
    return _Faster(form, forms[form], medians, left_out)
