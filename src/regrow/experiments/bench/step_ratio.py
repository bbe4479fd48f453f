"""A whole training step of one network, dense and sparse, in less than a minute."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch

from regrow.experiments.bench.measure import Spread, spread
from regrow.experiments.bench.steps import (
    DENSE,
    SPARSE,
    dense_model,
    dense_training,
    make_batches,
    sparse_model,
    sparse_training,
    take_turns,
)
from regrow.experiments.bench.train import check
from regrow.experiments.bench.update_cost import update_cost
from regrow.experiments.config import TrainConfig

_ROUNDS = 9
_UPDATE_STEPS = 8  # dense steps in which `update_cost` is done


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
    steps = {DENSE: dense_training(config, model, batches).step, SPARSE: sparse.step}
    times = take_turns(steps, _ROUNDS, (end - time.perf_counter()) / 2)
    dense, plain = median(times[DENSE]), median(times[SPARSE])
    updates = end - time.perf_counter() > _UPDATE_STEPS * dense / 1e3
    factor = 1 / (1 - update_cost(sparse, config, plain).share) if updates else 1.0
    ratio = spread([a / (b * factor) for a, b in zip(times[DENSE], times[SPARSE], strict=True)])
    return StepRatio(dense, plain * factor, ratio, updates, len(times[DENSE]), torch.get_num_threads())
