"""Redistribution: how many of the weights to grow each layer gets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from regrow.core.apportion import Overflow, apportion
from regrow.core.entries import LayerState
from regrow.core.score import Score

__all__ = ["Rates", "Redistribute", "apportion", "by_mean", "keep", "room_to_grow", "spare_full", "unit_sizes"]

Redistribute = Callable[[Mapping[str, LayerState], Mapping[str, int], int], dict[str, int]]
"""From the layers before the drop, the number dropped in each, and the number to grow in all, to the
number to grow in each. All are numbers of weights, and those of a layer are multiples of its `unit_size`."""

Rates = Callable[[Mapping[str, LayerState], float], Mapping[str, float]]
"""From the layers before the drop and the rate of the step to the rate of each layer."""

# From this density on a layer is nearly full to `spare_full`.
_NEARLY_FULL = 0.8


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


def by_mean(score: Score, *, at_least: int = 0, fill: float = 1.0, overflow: Overflow = "proportional") -> Redistribute:
    """Share the pool in proportion to each layer's mean score over its active weights before the drop.

    With `regrow.score.momentum` this is the redistribution of sparse momentum as the paper has it (arXiv:1907.04840,
    section 3.2), and with `at_least=1, fill=0.99, overflow="equal"` as the authors' code has it. A layer without
    weights has mean zero. A mean that is not finite is a ValueError.

    Args:
        score: what the mean is taken of.
        at_least: units that a layer of positive mean gets at least, and one without weights too, as far as there is
            room.
        fill: the part of a layer's room that is filled, unless there are too many to grow for that.
        overflow: how what does not fit is shared among layers that have room: in the proportion of their means,
            "proportional", or in "equal" parts.

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
        means, sizes = _means(score, layers), unit_sizes(layers)
        needy = {name for name, layer in layers.items() if means[name] > 0 or not len(layer.active)}
        least = {name: at_least * sizes[name] if name in needy else 0 for name in layers}
        room = room_to_grow(layers, dropped)
        return apportion(total, means, room, sizes, at_least=least, fill=fill, overflow=overflow)

    return redistribute


def spare_full(score: Score) -> Rates:
    """Let a nearly full layer that is about to be filled again drop no more than it has free.

    A layer of density above 0.8 whose mean score is above the average of the layers drops the share
    `min(1 - density, rate)`, every other one `rate` (`adjust_prune_rate` in the code of arXiv:1907.04840).

    Example:
        >>> import torch
        >>> from regrow.core.entries import Entries
        >>> from regrow.core.score import magnitude
        >>> def layer(weight, absent):
        ...     n = len(weight)
        ...     active = Entries(torch.arange(n), torch.tensor(weight))
        ...     return LayerState(active, Entries(torch.arange(n, n + absent), torch.zeros(absent)), n + absent, (n,))
        >>> rates = spare_full(magnitude)({"a": layer([3.0] * 9, 1), "b": layer([1.0] * 9, 9)}, 0.5)
        >>> {name: round(rate, 2) for name, rate in rates.items()}
        {'a': 0.1, 'b': 0.5}
    """

    def rates(layers: Mapping[str, LayerState], rate: float) -> dict[str, float]:
        means = _means(score, layers)
        average = sum(means.values()) / max(len(means), 1)
        result = {}
        for name, layer in layers.items():
            density = len(layer.active) / layer.numel
            spared = density > _NEARLY_FULL and means[name] > average
            result[name] = min(1 - density, rate) if spared else rate
        return result

    return rates


def _means(score: Score, layers: Mapping[str, LayerState]) -> dict[str, float]:
    """Return the mean score over the active weights of each layer; zero for a layer that has none."""
    means = {
        name: float(score(layer.active).double().mean()) if len(layer.active) else 0.0 for name, layer in layers.items()
    }
    for name, mean in means.items():
        if not math.isfinite(mean):
            raise ValueError(
                f"the mean score of {name!r} is {mean}: the weights, gradients or momentum have diverged; "
                "lower the learning rate"
            )
    return means
