"""A whole training step of one network, dense and sparse, in less than a minute."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch

from regrow.experiments.bench.common.spreads import Spread, ratios
from regrow.experiments.bench.common.turns import seconds_of, take_turns
from regrow.experiments.bench.steps.check import check
from regrow.experiments.bench.steps.training import (
    DENSE,
    SPARSE,
    dense_model,
    dense_training,
    make_batches,
    sparse_model,
    sparse_training,
)
from regrow.experiments.bench.steps.update_cost import settle, update_cost
from regrow.experiments.train.config import TrainConfig

__all__ = ["StepRatio", "step_ratio"]

_ROUNDS = 9
# Dense steps in which an update with its window, all rounds and `update_cost` are done.
_UPDATE_STEPS = 30


@dataclass(frozen=True)
class StepRatio:
    """What a step takes.

    Attributes:
        dense: milliseconds of a dense step in float32, median.
        sparse: milliseconds of a sparse step, with its share of topology updates if `updates`.
        ratio: dense over sparse, round by round.
        updates: whether topology updates are in it; False where there was no time to measure them.
        rounds: how often both were timed.
        threads: PyTorch's.
    """

    dense: float
    sparse: float
    ratio: Spread
    updates: bool
    rounds: int
    threads: int


def step_ratio(config: TrainConfig, *, seconds: float = 40) -> StepRatio:
    """Check the sparse network's loss against masked storage, then time steps of both in turn.

    Args:
        config: the settings; the sparse weights are stored by nonzero.
        seconds: about how long it may take; on a slow machine three rounds, without updates, may take longer.

    Raises:
        WrongResultError: if the sparse network computes another loss than masked storage.
        ValueError: if sparse storage cannot hold the network.
    """
    end = time.perf_counter() + seconds
    batches, model = make_batches(config), dense_model(config)
    sparse_net = sparse_model(config, model, batches, "cpu")
    check(model, sparse_net, batches, config)
    sparse = sparse_training(config, sparse_net, batches)
    dense_step = dense_training(config, model, batches).step
    dense_step()
    updates = end - time.perf_counter() > _UPDATE_STEPS * seconds_of(dense_step)
    if updates:
        settle(sparse, config, 1)  # it moves weights to layers that cost more, as in any training
    times = take_turns({DENSE: dense_step, SPARSE: sparse.step}, _ROUNDS, (end - time.perf_counter()) / 2)
    dense, plain = median(times[DENSE]), median(times[SPARSE])
    factor = 1 / (1 - update_cost(sparse, config).share) if updates else 1.0
    ratio = ratios(times[DENSE], times[SPARSE], factor)
    return StepRatio(dense, plain * factor, ratio, updates, len(times[DENSE]), torch.get_num_threads())
