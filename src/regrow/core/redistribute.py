"""Redistribution: how many of the weights to grow each layer gets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from regrow.core.entries import LayerState
from regrow.core.score import Score

Redistribute = Callable[[Mapping[str, LayerState], Mapping[str, int], int], dict[str, int]]
"""From the layers before the drop, the number dropped in each, and the number to grow in all, to the
number to grow in each."""


def apportion(total: int, share: Mapping[str, float], room: Mapping[str, int]) -> dict[str, int]:
    """Split `total` into whole numbers proportional to `share`, none above its `room`.

    What a full layer cannot take is shared among the rest in the same proportion; the last units go to the
    largest remainders, ties to the earlier name. The arithmetic is exact.

    Args:
        total: units to hand out; at most the sum of `room`.
        share: a non-negative, finite weight for each name; all zero means equal shares.
        room: the most each name may take.

    Raises:
        ValueError: if `total` is negative or exceeds the room there is, if the names differ, or if a share
            is negative or not finite.

    Example:
        >>> apportion(10, {"a": 2.0, "b": 1.0, "c": 1.0}, {"a": 3, "b": 9, "c": 9})
        {'a': 3, 'b': 4, 'c': 3}
    """
    if share.keys() != room.keys():
        raise ValueError(f"share names {sorted(share)} differ from room names {sorted(room)}")
    if not 0 <= total <= sum(room.values()):
        raise ValueError(f"cannot hand out {total} units: there is room for 0 to {sum(room.values())}")
    for name, value in share.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"the share of {name!r} is {value}; shares are finite and not negative")

    result = dict.fromkeys(share, 0)
    exact = {name: Fraction(value) for name, value in share.items()}
    open_names = [name for name in share if room[name] > 0]
    left = total
    while open_names and left:
        weight = sum(exact[name] for name in open_names)
        if weight == 0:
            exact.update(dict.fromkeys(open_names, Fraction(1)))
            weight = Fraction(len(open_names))
        quota = {name: left * exact[name] / weight for name in open_names}
        full = [name for name in open_names if quota[name] >= room[name]]
        if not full:
            result.update(_round_to_total(quota, left))
            break
        for name in full:
            result[name] = room[name]
            left -= room[name]
        open_names = [name for name in open_names if quota[name] < room[name]]
    return result


def _round_to_total(quota: Mapping[str, Fraction], total: int) -> dict[str, int]:
    """Round `quota`, which sums to `total`, to whole numbers with the same sum by largest remainder."""
    whole = {name: math.floor(value) for name, value in quota.items()}
    # sorted() is stable, so equal remainders keep the order of the names
    by_remainder = sorted(quota, key=lambda name: whole[name] - quota[name])
    for name in by_remainder[: total - sum(whole.values())]:
        whole[name] += 1
    return whole


def room_to_grow(layers: Mapping[str, LayerState], dropped: Mapping[str, int]) -> dict[str, int]:
    """Return how many weights each layer can grow: its candidates and what it has just dropped."""
    return {name: len(layer.candidates) + dropped[name] for name, layer in layers.items()}


def keep(layers: Mapping[str, LayerState], dropped: Mapping[str, int], total: int) -> dict[str, int]:
    """Give each layer back what it dropped (SET, RigL).

    If `total` differs from what was dropped, the layers share it in the proportion of their drops.
    """
    return apportion(total, dropped, room_to_grow(layers, dropped))


def by_mean(score: Score) -> Redistribute:
    """Share the pool in proportion to each layer's mean score over its active weights before the drop.

    With `regrow.score.momentum` this is the redistribution of sparse momentum (arXiv:1907.04840, section
    3.2). A layer without weights has mean zero. A mean that is not finite is a ValueError.

    Example:
        >>> import torch
        >>> from regrow.core.entries import Entries
        >>> from regrow.core.score import magnitude
        >>> def layer(weight, absent):
        ...     n = len(weight)
        ...     active = Entries(torch.arange(n), torch.tensor(weight))
        ...     candidates = Entries(torch.arange(n, n + absent), torch.zeros(absent))
        ...     return LayerState(active, candidates, n + absent, (n + absent,))
        >>> layers = {"a": layer([3.0, 3.0], 8), "b": layer([1.0, 1.0], 8)}
        >>> by_mean(magnitude)(layers, {"a": 2, "b": 2}, 4)
        {'a': 3, 'b': 1}
    """

    def redistribute(layers: Mapping[str, LayerState], dropped: Mapping[str, int], total: int) -> dict[str, int]:
        means = {name: _mean(score, layer) for name, layer in layers.items()}
        for name, mean in means.items():
            if not math.isfinite(mean):
                raise ValueError(
                    f"the mean score of {name!r} is {mean}: the weights, gradients or momentum have diverged; "
                    "lower the learning rate"
                )
        return apportion(total, means, room_to_grow(layers, dropped))

    return redistribute


def _mean(score: Score, layer: LayerState) -> float:
    if not len(layer.active):
        return 0.0
    return float(score(layer.active).double().mean())
