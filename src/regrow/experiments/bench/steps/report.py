"""The figures of whole training steps, and of which presets they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from regrow.experiments.bench.common.machine import Machine
from regrow.experiments.bench.common.report_file import ReportFile
from regrow.experiments.bench.common.spreads import Spread
from regrow.experiments.bench.steps.estimate import Estimated
from regrow.experiments.bench.steps.state import State
from regrow.experiments.bench.steps.update_cost import UpdateCost
from regrow.experiments.errors import UserError
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.methods import check_recipe
from regrow.experiments.train.presets import preset as find_preset

__all__ = ["COMPILED", "EAGER", "FILE", "TARGETS", "Beside", "Report", "Row", "Settings", "Stored", "step_configs"]

TARGETS: Mapping[str, float] = {
    "cifar10-vgg16-d": 0.05,
    "cifar10-vgg16-like": 0.05,
    "cifar10-wrn-22-8": 0.05,
    "cifar10-wrn-16-10": 0.05,
    "cifar10-wrn-28-2": 0.1,
    "cifar10-mlp": 0.02,
}
"""The presets that are measured if none is named, with their densities: those of the first table of the README."""

EAGER, COMPILED = "eager", "torch.compile"


@dataclass(frozen=True)
class Settings:
    """How it is measured.

    Attributes:
        backend: storage of the sparse weights; "measured" times which is faster.
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
        compute: bound on the multiply-adds of the sparse layers, in those of a uniform spread; None takes the preset's.
        updates: topology updates before anything is timed: they move weights between layers that cost differently.
        all_sparse: also the same training with everything stored sparsely and a window of 22 steps, in the same rounds.
        blocks: also the same training with units of so many outputs and inputs each, in the same rounds.
        bfloat16: whether dense bfloat16 runs too: without instructions for it, it is slow.
        sparse_bfloat16: also each of the sparse trainings under autocast to bfloat16, in the same rounds.
    """

    backend: str = "auto"
    batch: int | None = None
    method: str | None = None
    growth: str | None = None
    rounds: int = 15
    seconds: float = 60
    compile_seconds: float = 300
    profiled: int = 2
    peers: tuple[str, ...] = ()
    peaks: bool = True
    redistribute: str = "method"
    compute: float | None = None
    updates: int = 1
    all_sparse: bool = False
    blocks: tuple[tuple[int, int], ...] = ()
    bfloat16: bool = True
    sparse_bfloat16: bool = False


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
class Beside:
    """A further sparse training of a row, in the same rounds.

    Attributes:
        layers: how each weight is stored, with its density in the steps that were timed.
        sparse_step: milliseconds of a step with its share of updates and looking.
        ratio: time of a dense step over that, round by round.
        updates: what topology updates cost.
        over_bfloat16: time of a dense step in bfloat16 over that, round by round; None if it was not measured.
    """

    layers: tuple[Stored, ...]
    sparse_step: float
    ratio: Spread
    updates: UpdateCost
    over_bfloat16: Spread | None = None


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
        milliseconds: of a step of each contender; sparse ones without updates.
        sparse_step: milliseconds of a sparse step with its share of updates and looking.
        ratio: time of each dense contender over that of the sparse step with its share, round by round; of other
            libraries, which update nothing, over that of the sparse step without.
        updates: what topology updates cost.
        breakdown: milliseconds of each kind of operation under the profiler, of sparse steps and the eager dense one.
        state: what each training holds between steps.
        estimated: the speed-ups that the paper's way of estimating gives.
        left_out: what was not measured, and why.
        bfloat16_form: which form of dense bfloat16 was the faster; empty if it was not measured.
        bfloat16_forms: milliseconds of each form that ran.
        peak: the most bytes that each contender's own process held in ordinary steps beyond what it held before the
            model was made, dense ones not compiled; `sparse, update` around an update.
        beside: further sparse trainings by name: with units of several weights, everything stored sparsely, or under
            autocast to bfloat16.
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
    beside: dict[str, Beside] = field(default_factory=dict)


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
    own: dict[str, object] = {"method": settings.method, "growth": settings.growth, "batch_size": settings.batch}
    own |= {"redistribute": settings.redistribute, "compute": settings.compute}
    changes = {name: value for name, value in own.items() if value is not None}
    configs = []
    for name in presets or TARGETS:
        base = override(find_preset(name), changes)
        if base.method == "dense":
            raise UserError("dense training is always measured: name a sparse --method beside it")
        check_recipe(base.method)
        chosen = densities or (TARGETS.get(name, base.density),)
        configs += [override(base, {"density": density}) for density in dict.fromkeys(chosen)]
    return configs
