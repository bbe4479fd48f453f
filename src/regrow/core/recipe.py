"""A sparse training algorithm as data, and the pure function that carries out one update of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from regrow.core.entries import Change, Entries, LayerState
from regrow.core.growth import Growth, exact
from regrow.core.positions import chosen, find, where
from regrow.core.redistribute import Redistribute, apportion, room_to_grow
from regrow.core.schedule import Schedule, Timing
from regrow.core.score import Score

# From this many scores on a sample is taken, of about so many, in strides that no layer's sides are multiples of.
_MANY, _SAMPLE = 1 << 17, 1 << 14
_STRIDES = (7, 13, 31, 61, 127, 251, 509, 1021, 2039, 4093, 8191)

Information = Literal["gradient", "momentum"]


@dataclass(frozen=True)
class Recipe:
    """A sparse training algorithm: what leaves, how many each layer gets back, what joins, how much and when.

    Attributes:
        drop: score of the active weights; in each layer the lowest leave.
        redistribute: how many of the pooled weights each layer grows.
        grow: score of the positions that may be grown; the highest join, at zero.
        fraction: share of a layer's nonzeros that is dropped, a function of the step, in [0, 1].
        update_at: whether an update is due after a step.
        needs: the information that the scores read: "gradient" (at the update), "momentum" (of the optimizer).
        reset_state: whether a grown weight's optimizer state starts at zero too; otherwise it keeps
            the momentum that made it grow.
        keep_returning: whether a weight that is dropped and grown again in the same update stays as it was, with its
            value and its optimizer state; otherwise it starts again at zero.
        density: the network's density after an update, a function of the step; None keeps the number of
            nonzeros as it is.
        growth: where the information on absent weights comes from: `regrow.growth.exact()`, `window(steps)` or
            `candidates(steps, per_nonzero)`.

    Raises:
        ValueError: if `needs` holds an unknown name, or the first fraction or density lies outside [0, 1].

    Example:
        >>> import regrow
        >>> mine = Recipe(
        ...     drop=regrow.score.magnitude,
        ...     redistribute=regrow.redistribute.by_mean(regrow.score.momentum),
        ...     grow=lambda e: e.grad.abs() * e.momentum.abs(),
        ...     fraction=regrow.schedule.cosine(0.5, steps=10_000),
        ...     update_at=regrow.schedule.every(390, until=10_000),
        ... )
    """

    drop: Score
    redistribute: Redistribute
    grow: Score
    fraction: Schedule
    update_at: Timing
    needs: Sequence[Information] = ("gradient", "momentum")
    reset_state: bool = False
    keep_returning: bool = False
    density: Schedule | None = None
    growth: Growth = field(default_factory=exact)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.needs) - set(get_args(Information)))
        if unknown:
            raise ValueError(f"unknown information {unknown} in needs: choose among {get_args(Information)}")
        _check_share(self.fraction(0), "fraction to drop", step=0)
        if self.density is not None:
            _check_share(self.density(0), "density", step=0)


def update(
    recipe: Recipe, layers: Mapping[str, LayerState], step: int, generator: torch.Generator
) -> dict[str, Change]:
    """Carry out one update: in each layer drop, pool what was dropped, redistribute it, and grow.

    What was just dropped is offered for growth with the rest, with the weight it had. Pure: nothing passed in is
    changed but the generator. The number of nonzeros over all layers stays exactly
    the same, or meets `round(recipe.density(step) * weights)` exactly. Ties fall to the lower index.

    Args:
        recipe: the algorithm.
        layers: every layer that takes part, by name; the order decides ties between layers.
        step: optimizer steps taken so far.
        generator: the only source of randomness.

    Returns:
        For each layer the positions that leave and those that join. A dropped weight may come back, at zero; it is in
        neither if the recipe keeps returning weights.

    Raises:
        ValueError: if the fraction or the density is outside its range, a score is NaN or has a wrong shape, or
            the redistribution does not hand out exactly the total.

    Example:
        >>> import regrow
        >>> layer = LayerState(
        ...     active=Entries(torch.tensor([0, 2]), torch.tensor([0.1, 3.0]), momentum=torch.tensor([1.0, 1.0])),
        ...     candidates=Entries(torch.tensor([1, 3]), torch.zeros(2), momentum=torch.tensor([2.0, 5.0])),
        ...     numel=4,
        ...     shape=(2, 2),
        ... )
        >>> recipe = regrow.sparse_momentum(every=10, steps=100)
        >>> update(recipe, {"0.weight": layer}, step=10, generator=torch.Generator())
        {'0.weight': Change(drop=tensor([0]), grow=tensor([3]))}
    """
    layers = {name: _with_generator(layer, generator) for name, layer in layers.items()}
    drop_counts, grow_total = _count(recipe, layers, step)

    dropped: dict[str, Entries] = {}
    for name, layer in layers.items():
        leaving = _extreme(recipe.drop(layer.active), drop_counts[name], layer.active, largest=False)
        dropped[name] = layer.active.select(leaving)

    grow_counts = recipe.redistribute(layers, drop_counts, grow_total)
    _check_counts(grow_counts, grow_total, room_to_grow(layers, drop_counts))

    changes: dict[str, Change] = {}
    for name, layer in layers.items():
        absent = layer.candidates.join(dropped[name])
        joining = _extreme(recipe.grow(absent), grow_counts[name], absent, largest=True)
        drop, grow = dropped[name].index, absent.index_at(joining).sort().values
        if recipe.keep_returning:
            (_, drop_returns), (_, grow_returns) = find(drop, grow), find(grow, drop.sort().values)
            drop, grow = drop[~drop_returns], grow[~grow_returns]
        changes[name] = Change(drop, grow)
    return changes


def _with_generator(layer: LayerState, generator: torch.Generator) -> LayerState:
    active, candidates = layer.active.with_generator(generator), layer.candidates.with_generator(generator)
    return LayerState(active, candidates, layer.numel, layer.shape)


def _count(recipe: Recipe, layers: Mapping[str, LayerState], step: int) -> tuple[dict[str, int], int]:
    """Return how many weights each layer drops and how many are grown in all."""
    fraction = recipe.fraction(step)
    _check_share(fraction, "fraction to drop", step)
    nonzeros = {name: len(layer.active) for name, layer in layers.items()}
    drops = {name: math.ceil(fraction * count) for name, count in nonzeros.items()}
    if recipe.density is None:
        return drops, sum(drops.values())

    density = recipe.density(step)
    _check_share(density, "density", step)
    target = round(density * sum(layer.numel for layer in layers.values()))
    surplus = sum(nonzeros.values()) - target
    if sum(drops.values()) < surplus:
        drops = apportion(surplus, nonzeros, nonzeros)
    return drops, sum(drops.values()) - surplus


def _check_share(value: float, what: str, step: int) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"the {what} at step {step} is {value}: it must lie in [0, 1]")


def _check_counts(counts: Mapping[str, int], total: int, room: Mapping[str, int]) -> None:
    """Refuse what a redistribution returned if it would not keep the number of nonzeros."""
    if counts.keys() != room.keys() or sum(counts.values()) != total:
        raise ValueError(
            f"redistribute gave {sum(counts.values())} weights to {len(counts)} layers, but there are {total} to hand "
            f"out to {len(room)}: make it return a count for every layer that sums to the total, as apportion does"
        )
    for name, count in counts.items():
        if not 0 <= count <= room[name]:
            raise ValueError(f"redistribute gave {count} weights to {name!r}, which can grow 0 to {room[name]}")


def _extreme(score: Tensor, count: int, entries: Entries, *, largest: bool) -> Tensor:
    """Return the ascending places of the `count` highest or lowest scores, ties to the lower index."""
    if score.shape != (len(entries),):
        raise ValueError(f"a score of shape {tuple(score.shape)} for {len(entries)} entries: give one for each")
    if count == 0:
        return score.new_empty(0, dtype=torch.int64)
    if score.amin().isnan():  # as is the least of any numbers of which one is
        raise ValueError("a score is NaN: the weights, gradients or momentum have diverged; lower the learning rate")
    threshold = _nth(score, count, largest=largest)
    reached = where(score >= threshold if largest else score <= threshold)
    if len(reached) == count:
        return reached
    tied = score[reached] == threshold
    beyond, ties = reached[~tied], reached[tied]
    wanted = count - len(beyond)
    ties = ties[entries.index_at(ties).argsort()[:wanted]]
    return torch.cat((beyond, ties)).sort().values


def _nth(score: Tensor, count: int, *, largest: bool) -> Tensor:
    """Return the score that the `count` highest or lowest reach, shape ()."""
    if largest and len(score) >= _MANY and count <= len(score) // 4:
        # topk moves all of them with their places, so those that a sample tells to be too low are left out first.
        step = max(prime for prime in _STRIDES if prime * _SAMPLE <= len(score))
        sample = score[::step]
        expected = count / step
        take = min(len(sample), math.ceil(expected + 4 * math.sqrt(expected) + 8))
        low = torch.topk(sample, take, sorted=False).values.min()
        above = score > low
        if (reached := int(above.count_nonzero())) >= count:
            score = chosen(score, above)
        elif reached + int((score == low).count_nonzero()) >= count:
            return low
    best = torch.topk(score, count, largest=largest, sorted=False).values
    return best.min() if largest else best.max()
