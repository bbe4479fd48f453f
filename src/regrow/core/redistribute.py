"""Redistribution: how many of the weights to grow each layer gets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from regrow.core.apportion import apportion
from regrow.core.entries import LayerState
from regrow.core.score import Score

__all__ = ["Redistribute", "apportion", "by_mean", "keep", "room_to_grow", "unit_sizes"]

Redistribute = Callable[[Mapping[str, LayerState], Mapping[str, int], int], dict[str, int]]
"""From the layers before the drop, the number dropped in each, and the number to grow in all, to the
number to grow in each. All are numbers of weights, and those of a layer are multiples of its `unit_size`."""


def room_to_grow(layers: Mapping[str, LayerState], dropped: Mapping[str, int]) -> dict[str, int]:
    """Return how many weights each layer can grow: its candidates and what it has just dropped."""
    return {name: len(layer.candidates) + dropped[name] for name, layer in layers.items()}


def unit_sizes(layers: Mapping[str, LayerState]) -> dict[str, int]:
    """Return the weights in a unit of each layer."""
    return {name: layer.unit_size for name, layer in layers.items()}


def keep(layers: Mapping[str, LayerState], dropped: Mapping[str, int], total: int) -> dict[str, int]:
    """Give each layer back what it dropped (SET, RigL).

    If `total` differs from what was dropped, the layers share it in the proportion of their drops.
    """
    return apportion(total, dropped, room_to_grow(layers, dropped), unit_sizes(layers))


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
        return apportion(total, means, room_to_grow(layers, dropped), unit_sizes(layers))

    return redistribute


def _mean(score: Score, layer: LayerState) -> float:
    if not len(layer.active):
        return 0.0
    return float(score(layer.active).double().mean())
