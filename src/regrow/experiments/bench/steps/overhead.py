"""What masked sparse training costs beside dense training: whole steps, in turn in one process.

Each network takes steps of dense SGD and of sparse momentum in masked storage on synthetic batches of the preset's
shape. A sparse step holds everything but the topology update, which is timed by itself and added as its share of an
epoch. Before it times, it checks that a sparse step is the dense step with absent weights at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

import regrow
from regrow.experiments.bench.common.machine import Machine
from regrow.experiments.bench.common.spreads import Spread, spread
from regrow.experiments.bench.common.tables import Table
from regrow.experiments.bench.common.turns import seconds_of, take_turns
from regrow.experiments.bench.steps.training import (
    DENSE,
    SPARSE,
    Batches,
    Training,
    dense_model,
    dense_training,
    make_batches,
    sparse_model,
    sparse_training,
    steps_per_epoch,
)
from regrow.experiments.errors import WrongResultError
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.presets import preset

__all__ = ["PRESETS", "Overhead", "measure", "page", "table"]

PRESETS = ("mnist-lenet300-100", "cifar10-vgg16-like", "cifar10-wrn-16-8")
_DENSITY = 0.05
_UPDATES = 5
_SAMPLE_SECONDS = 0.3  # a sample lasts so long, or one step

_PAGE = """# Overhead of masked sparse training

Whole training steps (forward, loss, backward, fused SGD with Nesterov momentum and weight decay) of sparse momentum
at 5 % in masked storage beside dense training, on synthetic batches of the presets' shapes, in turn in one process.
The update of the topology is timed by itself and added as its share of an epoch. Medians, with quartiles in brackets.

`{command}`, {machine}

{table}
"""


@dataclass(frozen=True)
class Overhead:
    """What the steps of one network take.

    Attributes:
        network: its name.
        dense: milliseconds of a dense step.
        sparse: milliseconds of a sparse step without the update.
        update: milliseconds of a topology update, median.
        ratio: sparse over dense, with an update an epoch.
    """

    network: str
    dense: Spread
    sparse: Spread
    update: float
    ratio: Spread


def measure(name: str, rounds: int) -> Overhead:
    """Check and time the network of a preset.

    Args:
        name: the preset.
        rounds: how many samples of each.

    Raises:
        UserError: if there is no such preset.
        WrongResultError: if a sparse step is not the dense step with absent weights at zero.
    """
    config = override(preset(name), {"method": "sparse-momentum", "density": _DENSITY, "backend": "masked"})
    batches = make_batches(config)
    _check(config, batches)
    dense, sparse = _pair(config, batches)
    fastest = min(seconds_of(training.step) for training in (dense, sparse, dense))
    steps = max(1, round(_SAMPLE_SECONDS / fastest))
    samples = take_turns({DENSE: _repeated(dense, steps), SPARSE: _repeated(sparse, steps)}, rounds, float("inf"))
    times = {kind: [sample / steps for sample in each] for kind, each in samples.items()}
    update = _update_milliseconds(sparse)
    share = update / steps_per_epoch(config)
    return Overhead(
        network=config.model,
        dense=spread(times[DENSE]),
        sparse=spread(times[SPARSE]),
        update=update,
        ratio=spread([(a + share) / b for a, b in zip(times[SPARSE], times[DENSE], strict=True)]),
    )


def table(rows: Sequence[Overhead]) -> Table:
    """Return a row for each network."""
    columns = ("network", "dense step, ms", "sparse step, ms", "update, ms", "ratio with an update an epoch")

    def text(figure: Spread, form: str) -> str:
        return figure.text(form.format, to=" to ")

    return Table(
        "Masked sparse training beside dense",
        columns,
        tuple(
            (row.network, text(row.dense, "{:.2f}"), text(row.sparse, "{:.2f}"), f"{row.update:.1f}",
             text(row.ratio, "{:.3f}"))
            for row in rows
        ),
    )  # fmt: skip


def page(rows: Sequence[Overhead], machine: Machine, command: str) -> str:
    """Return the page of the documentation with these figures."""
    return _PAGE.format(command=command, machine=machine, table=table(rows).lines())


def _pair(config: TrainConfig, batches: Batches) -> tuple[Training, Training]:
    """Return a dense and a sparse training that start from the same weights."""
    model = dense_model(config)
    sparse = sparse_training(config, sparse_model(config, model, batches, "masked"), batches)
    return dense_training(config, model, batches), sparse


def _check(config: TrainConfig, batches: Batches) -> None:
    dense, sparse = _pair(config, batches)
    dense.model.load_state_dict(regrow.dense_state_dict(sparse.model))
    for training in (dense, sparse):
        torch.manual_seed(2)  # for dropout
        training.step()
    found, expected = regrow.dense_state_dict(sparse.model), dense.model.state_dict()
    for name, mask in regrow.masks(sparse.model).items():
        if not torch.equal(found[name], expected[name] * mask):
            raise WrongResultError(f"{config.preset}: {name} after a sparse step is not that of a dense one; not timed")


def _repeated(training: Training, steps: int) -> Callable[[], None]:
    def sample() -> None:
        for _ in range(steps):
            training.step()

    return sample


def _update_milliseconds(training: Training) -> float:
    assert training.topology is not None
    return median(seconds_of(training.topology.update) * 1e3 for _ in range(_UPDATES))
