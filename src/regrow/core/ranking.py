"""One ranking over all layers: it decides how many weights each layer drops, or grows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from regrow.core.apportion import apportion
from regrow.core.entries import Entries, LayerState
from regrow.core.extreme import extreme, refuse_nan
from regrow.core.redistribute import Redistribute, room_to_grow, unit_sizes
from regrow.core.score import Score, unit_means

__all__ = ["Drops", "by_rank", "lowest_of_all"]

Drops = Callable[[Mapping[str, LayerState], float, int], Mapping[str, int]]
"""From the layers before the drop, the fraction of the step, and how many weights must leave at least, to the number
that each layer drops, a multiple of its `unit_size`."""


def lowest_of_all(score: Score, *, count: int | None = None) -> Drops:
    """Let the lowest scores of all layers together leave: one ranking decides how many weights each layer drops.

    With `regrow.score.magnitude` this is global magnitude pruning: the `ceil(fraction * nonzeros)` weights of smallest
    magnitude of the whole network. Ties fall to the earlier layer, then to the lower index. Units are ranked by their
    means, and whole units leave until there are enough. The last unit of a layer stays, unless so many must leave that
    nothing else is left.

    Args:
        score: what is ranked; give the recipe the same as `drop`.
        count: weights to drop at an update, whatever the fraction; None drops the fraction.

    Raises:
        ValueError: if `count` is negative; in an update, if a score is NaN.

    Example:
        >>> import torch
        >>> from regrow.core.entries import Entries
        >>> from regrow.core.score import magnitude
        >>> def layer(weight):
        ...     index = torch.arange(2 * len(weight))
        ...     active = Entries(index[: len(weight)], torch.tensor(weight))
        ...     return LayerState(active, Entries(index[len(weight) :], torch.zeros(len(weight))), len(index), (8,))
        >>> layers = {"a": layer([1.0, 2.0, 3.0, 9.0]), "b": layer([3.0, 4.0, 5.0, 0.5])}
        >>> lowest_of_all(magnitude)(layers, 0.5, 0), lowest_of_all(magnitude, count=3)(layers, 0.5, 0)
        ({'a': 3, 'b': 1}, {'a': 2, 'b': 1})
    """
    if count is not None and count < 0:
        raise ValueError(f"count is {count}: it is the number of weights that an update drops, not below 0")

    def drops(layers: Mapping[str, LayerState], fraction: float, least: int) -> dict[str, int]:
        existing = sum(len(layer.active) for layer in layers.values())
        wanted = math.ceil(fraction * existing) if count is None else min(count, existing)
        sizes = unit_sizes(layers)
        means = _means(score, {name: layer.active for name, layer in layers.items()}, sizes)
        last = {name: float(mean.max()) for name, mean in means.items() if len(mean)}
        spared = sum(sizes[name] for name in last)
        # only how many of a layer leave is asked here, so any of its highest may stand for the last one
        for name in last:
            means[name] = means[name].index_fill(0, means[name].argmax(), math.inf)
        counts = _leading(means, sizes, min(max(wanted, least), existing - spared), largest=False)
        for name in sorted(last, key=last.__getitem__):
            if sum(counts.values()) < least:
                counts[name] = len(layers[name].active)
        return counts

    return drops


def by_rank(score: Score) -> Redistribute:
    """Let the highest scores of all layers together grow: one ranking decides how many weights each layer grows.

    Ranked is what may be grown: the candidates and what was just dropped. With `regrow.score.momentum` this is the
    global growth of the code of arXiv:1907.04840, with an exact count instead of a threshold that is searched for. Ties
    fall to the earlier layer. The scores of all layers are in memory at once, each nearly as large as the dense weight.

    Args:
        score: what is ranked; give the recipe the same as `grow`.

    Raises:
        ValueError: in an update, if a score is NaN.

    Example:
        >>> import torch
        >>> from regrow.core.entries import Entries
        >>> from regrow.core.score import gradient
        >>> def layer(grad):
        ...     index, grad = torch.arange(4), torch.tensor(grad)
        ...     parts = [Entries(part, torch.zeros(2), grad[part]) for part in (index[:2], index[2:])]
        ...     return LayerState(*parts, 4, (4,))
        >>> by_rank(gradient)({"a": layer([0.0, 0.0, 3.0, 4.0]), "b": layer([0.0, 0.0, 5.0, 1.0])}, {"a": 0, "b": 0}, 3)
        {'a': 2, 'b': 1}
    """

    def redistribute(layers: Mapping[str, LayerState], dropped: Mapping[str, int], total: int) -> dict[str, int]:
        offered = {name: layer.candidates if layer.absent is None else layer.absent for name, layer in layers.items()}
        sizes, room = unit_sizes(layers), room_to_grow(layers, dropped)
        counts = _leading(_means(score, offered, sizes), sizes, total, largest=True)
        # units of several sizes may make a little more than the total
        return counts if sum(counts.values()) == total else apportion(total, counts, room, sizes)

    return redistribute


def _means(score: Score, entries: Mapping[str, Entries], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the score of each unit, by layer."""
    means = {name: unit_means(score, each, sizes[name]) for name, each in entries.items()}
    for mean in means.values():
        refuse_nan(mean)
    return means


def _leading(means: Mapping[str, Tensor], sizes: Mapping[str, int], count: int, *, largest: bool) -> dict[str, int]:
    """Return how many weights of each layer are among those that lead the ranking: whole units, `count` or a few more.

    Args:
        means: the score of each unit, by layer.
        sizes: weights in a unit of each layer.
        count: weights, at most as many as there are.
        largest: whether the highest lead.
    """
    if not count:
        return dict.fromkeys(means, 0)
    pooled = torch.cat([mean.double() for mean in means.values()])
    ends = torch.tensor([len(mean) for mean in means.values()]).cumsum(0)
    size = torch.tensor([sizes[name] for name in means])
    if len(set(sizes.values())) == 1:
        leading = extreme(pooled, -(-count // int(size[0])), lambda at: at, largest=largest).cpu()
    else:
        order = pooled.sort(stable=True, descending=largest).indices.cpu()
        weights = size[torch.searchsorted(ends, order, right=True)].cumsum(0)
        leading = order[: int(torch.searchsorted(weights, count)) + 1]
    units = torch.bincount(torch.searchsorted(ends, leading, right=True), minlength=len(means))
    return {name: int(number) * sizes[name] for name, number in zip(means, units.tolist(), strict=True)}
