"""What topology updates cost, spread over the steps between them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import regrow
from regrow.core.growth import or_default
from regrow.experiments.bench.common.turns import seconds_of
from regrow.experiments.bench.steps.training import Training, recipe_of, steps_per_epoch, update_interval
from regrow.experiments.train.config import TrainConfig
from regrow.storage import sparse_weights

__all__ = ["UpdateCost", "cost_per_step", "looking_steps", "settle", "update_cost"]

_LOOKING = 3  # steps of a window that are timed
_ORDINARY = 3
_EPISODES = 2


@dataclass(frozen=True)
class UpdateCost:
    """What topology updates cost, in milliseconds.

    Attributes:
        every: steps between updates; None if there are none.
        looking_steps: how many of those look at absent weights for growth, where not all do.
        looking: such a step.
        update: what an update adds to the steps around it.
        share: of the time of all steps of an interval, what updates and looking take.
    """

    every: float | None
    looking_steps: int
    looking: float
    update: float
    share: float


def cost_per_step(plain: float, looking: float, update: float, every: float, looking_steps: int) -> float:
    """Return the mean time of a step over an interval between updates.

    Args:
        plain: an ordinary step.
        looking: a step in which growth looks at absent weights.
        update: what an update adds.
        every: steps between updates.
        looking_steps: how many of those look.

    Example:
        >>> cost_per_step(10.0, 20.0, 50.0, every=100, looking_steps=10)
        11.5
    """
    return (plain * (every - looking_steps) + looking * looking_steps + update) / every


def looking_steps(recipe: regrow.Recipe, every: float, *, holds_absent: bool = False) -> int:
    """Return in how many steps of an interval growth looks at absent weights; 0 where it does so in all, or never.

    Args:
        recipe: what is carried out.
        every: steps between updates.
        holds_absent: whether all weights are in masked storage.
    """
    steps = or_default(recipe.growth, holds_absent=holds_absent).steps
    if not recipe.needs or steps is None:
        return 0
    return min(steps if "momentum" in recipe.needs else 1, int(every))


def _looking_steps(recipe: regrow.Recipe, every: float, training: Training) -> int:
    weights = sparse_weights(training.model).values()
    return looking_steps(recipe, every, holds_absent=all(weight.holds_absent for weight in weights))


def settle(training: Training, config: TrainConfig, updates: int) -> int:
    """Train until some topology updates were carried out, each after its window, and return how many: 0 of static."""
    recipe = recipe_of(config)
    every = update_interval(recipe, config.epochs * steps_per_epoch(config))
    if every is None or training.topology is None:
        return 0
    for _ in range(updates):
        training.updates.at = training.topology.step + 1 + max(1, _looking_steps(recipe, every, training))
        while training.topology.step < training.updates.at:
            training.step()
    training.step()  # makes what only a first step after an update makes
    return updates


def update_cost(training: Training, config: TrainConfig) -> UpdateCost:
    """Carry out some updates and time the steps around them.

    An update moves weights between layers, so ordinary steps before and after it may take different times: what it
    adds is counted beyond both.
    """
    recipe = recipe_of(config)
    every = update_interval(recipe, config.epochs * steps_per_epoch(config))
    if every is None or training.topology is None:
        return UpdateCost(None, 0, 0.0, 0.0, 0.0)
    window = _looking_steps(recipe, every, training)
    timed = max(1, min(window, _LOOKING))
    looking, updates, plain = [], [], []
    before = _plain(training)
    for _ in range(_EPISODES):
        # The window opens at the end of a first step; the step after the update makes new index structures.
        training.updates.at = training.topology.step + 1 + timed
        times = [seconds_of(training.step) * 1e3 for _ in range(timed + 2)]
        after = _plain(training)
        alone = median(times[1:-2]) if timed > 1 else before
        looking.append(alone)
        updates.append(max(0.0, sum(times) - before - after - timed * alone))
        plain.append(before)
        before = after
    window = window if timed > 1 else 0  # a single step that looks is part of what the update adds
    ordinary = median(plain)
    mean = cost_per_step(ordinary, median(looking), median(updates), every, window)
    return UpdateCost(every, window, median(looking), median(updates), max(0.0, 1 - ordinary / mean))


def _plain(training: Training) -> float:
    """Return the milliseconds of an ordinary step."""
    return median(seconds_of(training.step) * 1e3 for _ in range(_ORDINARY))
