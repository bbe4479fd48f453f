"""Whole training steps of sparse networks beside dense ones, in turn in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Protocol

import regrow
from regrow.experiments.bench.common.machine import Machine
from regrow.experiments.bench.common.report_file import ReportFile
from regrow.experiments.bench.layers.measure import FEWEST_ROUNDS, Spread, spread
from regrow.experiments.bench.steps.breakdown import profile
from regrow.experiments.bench.steps.check import check
from regrow.experiments.bench.steps.estimate import Estimated, estimate, observe
from regrow.experiments.bench.steps.peak import peaks
from regrow.experiments.bench.steps.peer_networks import PEERS
from regrow.experiments.bench.steps.training import (
    BFLOAT16,
    DENSE,
    SPARSE,
    Batches,
    CompileError,
    State,
    Training,
    compile_training,
    dense_model,
    dense_training,
    make_batches,
    recipe_of,
    sparse_model,
    sparse_training,
    state_of,
    take_turns,
)
from regrow.experiments.bench.steps.update_cost import UpdateCost, settle, update_cost
from regrow.experiments.errors import UserError
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.growth import growth_name
from regrow.experiments.train.methods import check_method
from regrow.experiments.train.presets import preset as find_preset

TARGETS: Mapping[str, tuple[float, ...]] = {
    "cifar10-vgg16-d": (0.05,),
    "cifar10-vgg16-like": (0.05,),
    "cifar10-vgg16-c": (0.1,),
    "cifar10-wrn-22-8": (0.05, 0.3),
    "cifar10-wrn-16-10": (0.05, 0.25),
    "cifar10-wrn-28-2": (0.1,),
    "cifar10-mlp": (0.02,),
}
"""The presets that are measured if none is named, at the densities of the paper's tables and of thin and wide nets."""

EAGER, COMPILED = "eager", "torch.compile"


@dataclass(frozen=True)
class Settings:
    """How it is measured.

    Attributes:
        backend: storage of the sparse weights.
        batch: samples in a step; None takes the preset's.
        method: method of sparse training; None takes the preset's.
        growth: what growth looks at; None takes the recipe's own.
        rounds: rounds at most.
        seconds: no new round begins after so many.
        compile_seconds: how long `torch.compile` may take, for float32 and for bfloat16; 0 leaves it out.
        profiled: steps under the profiler.
        peers: other libraries beside.
        peaks: whether to measure the peak memory of each contender, in processes of their own.
        redistribute: `method`, or `keep` for layers that keep the number of their weights.
        updates: topology updates before anything is timed: they move weights between layers that cost differently.
    """

    backend: str = "auto"
    batch: int | None = None
    method: str | None = None
    growth: str | None = "window:44"
    rounds: int = 15
    seconds: float = 60
    compile_seconds: float = 300
    profiled: int = 2
    peers: tuple[str, ...] = ()
    peaks: bool = True
    redistribute: str = "method"
    updates: int = 1


@dataclass(frozen=True)
class Stored:
    """How one sparse weight is stored.

    Attributes:
        name: the weight.
        storage: `sparse` or `masked`.
        density: share of it that exists.
        gain: by what factor the layer alone gained from sparse storage; None where nothing was measured.
        reason: why; empty where the storage was asked for.
    """

    name: str
    storage: str
    density: float
    gain: float | None
    reason: str


@dataclass(frozen=True)
class Row:
    """One preset at one density.

    Attributes:
        preset: its name.
        density: share of the weights that exist.
        batch: samples in a step.
        method: of sparse training, and how it redistributes weights where that is not the method's own way.
        growth: what growth looked at: the settings', or the recipe's own where everything is masked.
        updates_before: topology updates that came before the steps that were timed.
        layers: how each weight is stored, with its density in the steps that were timed.
        dense_form: which form of dense float32 was the faster, and stands beside the sparse network.
        dense_forms: milliseconds of each form that ran.
        milliseconds: of a step of each contender; the sparse one without updates.
        sparse_step: milliseconds of a sparse step with its share of updates and looking.
        ratio: time of each contender over that of the sparse step with its share, round by round; of other libraries,
            which update nothing, over that of the sparse step without.
        updates: what topology updates cost.
        breakdown: milliseconds of each kind of operation, of the sparse and of the eager dense step under the profiler.
        state: what each training holds between steps.
        estimated: the speed-ups that the paper's way of estimating gives.
        left_out: what was not measured, and why.
        bfloat16_form: which form of dense bfloat16 was the faster.
        bfloat16_forms: milliseconds of each form that ran.
        peak: the most bytes that each contender's own process held in ordinary steps beyond what it held before the
            model was made, dense ones not compiled; `sparse, update` around an update.
    """

    preset: str
    density: float
    batch: int
    method: str
    growth: str
    updates_before: int
    layers: tuple[Stored, ...]
    dense_form: str
    dense_forms: dict[str, float]
    milliseconds: dict[str, Spread]
    sparse_step: float
    ratio: dict[str, Spread]
    updates: UpdateCost
    breakdown: dict[str, dict[str, float]]
    state: dict[str, State]
    estimated: Estimated
    left_out: dict[str, str]
    bfloat16_form: str = EAGER
    bfloat16_forms: dict[str, float] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)


@dataclass
class Report:
    """All figures of a measurement, as its JSON file holds them."""

    machine: Machine
    settings: Settings
    rows: list[Row] = field(default_factory=list)

    def row(self, preset: str, density: float) -> Row | None:
        """Return the row of a preset at a density, if it is measured."""
        return next((row for row in self.rows if (row.preset, row.density) == (preset, density)), None)


FILE = ReportFile(Report, "training steps")
"""The JSON files of such measurements."""


def step_configs(presets: Sequence[str], densities: Sequence[float], settings: Settings) -> list[TrainConfig]:
    """Return the settings of every row: each preset at each density.

    Args:
        presets: names; none means those of `TARGETS`.
        densities: none means a preset's own in `TARGETS`, or the one of its settings.
        settings: how to measure.

    Raises:
        UserError: if there is no such preset or method, or a setting does not fit.
    """
    own = {"method": settings.method, "growth": settings.growth, "batch_size": settings.batch}
    own |= {"redistribute": settings.redistribute}
    changes = {name: value for name, value in own.items() if value is not None}
    configs = []
    for name in presets or TARGETS:
        base = override(find_preset(name), changes)
        if base.method == "dense":
            raise UserError("dense training is always measured: name a sparse --method beside it")
        check_method(base.method)
        chosen = densities or TARGETS.get(name, (base.density,))
        configs += [override(base, {"density": density}) for density in dict.fromkeys(chosen)]
    return configs


class Progress(Protocol):
    """What is told of each row."""

    def begin(self, config: TrainConfig, done: int, count: int) -> None:
        """Called before a row is measured."""

    def end(self, row: Row) -> None:
        """Called after it."""


def run(report: Report, configs: Sequence[TrainConfig], *, out: Path | None, progress: Progress) -> None:
    """Measure what the report lacks of these settings, row by row.

    Args:
        report: gets the rows.
        configs: a preset's settings with a density each.
        out: JSON file that is written after every row; None writes none.
        progress: told of each row.

    Raises:
        WrongResultError: if a sparse network computes another loss than masked storage.
    """
    for done, config in enumerate(configs):
        if report.row(config.preset, config.density) is not None:
            continue
        progress.begin(config, done, len(configs))
        row = measure(config, report.settings)
        report.rows.append(row)
        if out is not None:
            FILE.save(report, out)
        progress.end(row)


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
    masks = regrow.masks(sparse_net)
    if not any(layer.storage == SPARSE for layer in regrow.summary(sparse_net).layers):
        config = override(config, {"growth": None})  # masked storage has all that growth reads
    dense = dense_training(config, deepcopy(model), batches)
    full = _faster(dense, config, batches, settings)
    half = _faster(
        dense_training(config, deepcopy(model), batches, bfloat16=True), config, batches, settings, bfloat16=True
    )
    sparse = sparse_training(config, sparse_net, batches)
    contenders = {DENSE: full.training, SPARSE: sparse, BFLOAT16: half.training}
    left_out = {**full.left_out, **half.left_out}
    for peer in settings.peers:
        try:
            contenders[peer] = PEERS[peer](config, model, masks, batches)
        except (ImportError, RuntimeError, ValueError) as error:
            left_out[peer] = " ".join(str(error).split())[:160]
    updated = settle(sparse, config, settings.updates)
    layers = tuple(
        Stored(layer.name, layer.storage, layer.density, layer.gain, layer.reason)
        for layer in regrow.summary(sparse_net).layers
    )
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
            name: _ratio(each, times[SPARSE], 1.0 if name in settings.peers else factor)
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


def _ratio(times: Sequence[float], sparse: Sequence[float], factor: float) -> Spread:
    """Return the spread of the ratio, round by round, to a sparse step that takes `factor` times as long."""
    return spread([a / (b * factor) for a, b in zip(times, sparse, strict=True)])


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
