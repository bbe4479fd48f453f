"""Redistribution: how many of the weights to grow each layer gets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from regrow.core.apportion import Overflow, apportion
from regrow.core.entries import LayerState
from regrow.core.score import Score

__all__ = [
    "Rates",
    "Redistribute",
    "Share",
    "apportion",
    "by_mean",
    "by_share",
    "keep",
    "mean_of",
    "nonzeros",
    "room_to_grow",
    "spare_full",
    "spare_full_by",
    "survivors",
    "unit_sizes",
    "weights",
]

Redistribute = Callable[[Mapping[str, LayerState], Mapping[str, int], int], dict[str, int]]
"""From the layers before the drop, the number dropped in each, and the number to grow in all, to the
number to grow in each. All are numbers of weights, and those of a layer are multiples of its `unit_size`."""

Share = Callable[[Mapping[str, LayerState], Mapping[str, int]], Mapping[str, float]]
"""From the layers before the drop and the number dropped in each to a non-negative share of each."""

Rates = Callable[[Mapping[str, LayerState], float], Mapping[str, float]]
"""From the layers before the drop and the rate of the step to the rate of each layer."""

# From this density on a layer is nearly full to `spare_full`.
_NEARLY_FULL = 0.8


def room_to_grow(layers: Mapping[str, LayerState], dropped: Mapping[str, int]) -> dict[str, int]:
    """Return how many weights each layer can grow: its candidates and, where that may return, what it has dropped."""
    return {
        name: len(layer.candidates) + dropped[name] if layer.absent is None else len(layer.absent)
        for name, layer in layers.items()
    }


def unit_sizes(layers: Mapping[str, LayerState]) -> dict[str, int]:
    """Return the weights in a unit of each layer."""
    return {name: layer.unit_size for name, layer in layers.items()}


def keep(layers: Mapping[str, LayerState], dropped: Mapping[str, int], total: int) -> dict[str, int]:
    """Give each layer back what it dropped (SET, RigL).

    If `total` differs from what was dropped, the layers share it in the proportion of their drops.
    """
    return apportion(total, dropped, room_to_grow(layers, dropped), unit_sizes(layers))


def by_share(
    share: Share, *, at_least: int = 0, fill: float = 1.0, overflow: Overflow = "proportional"
) -> Redistribute:
    """Share the pool in proportion to a number of each layer.

    Args:
        share: the number of each layer: `mean_of(score)`, `nonzeros`, `survivors`, `weights` or a function of yours.
        at_least: units that a layer of positive share gets at least, and one without weights too, as far as there is
            room.
        fill: the part of a layer's room that is filled, unless there are too many to grow for that.
        overflow: how what does not fit is shared among layers that have room: in the proportion of their shares,
            "proportional", or in "equal" parts.

    Example:
        >>> import torch
        >>> from regrow.core.entries import Entries
        >>> def layer(active, absent):
        ...     index = torch.arange(active + absent)
        ...     entries = [Entries(part, part + 1.0) for part in (index[:active], index[active:])]
        ...     return LayerState(*entries, active + absent, (active + absent,))
        >>> layers = {"a": layer(6, 30), "b": layer(3, 30)}
        >>> by_share(nonzeros)(layers, {"a": 4, "b": 2}, 6), by_share(survivors)(layers, {"a": 4, "b": 2}, 6)
        ({'a': 4, 'b': 2}, {'a': 4, 'b': 2})
    """

    def redistribute(layers: Mapping[str, LayerState], dropped: Mapping[str, int], total: int) -> dict[str, int]:
        shares, sizes = share(layers, dropped), unit_sizes(layers)
        needy = {name for name, layer in layers.items() if shares[name] > 0 or not len(layer.active)}
        least = {name: at_least * sizes[name] if name in needy else 0 for name in layers}
        room = room_to_grow(layers, dropped)
        return apportion(total, shares, room, sizes, at_least=least, fill=fill, overflow=overflow)

    return redistribute


def nonzeros(layers: Mapping[str, LayerState], dropped: Mapping[str, int]) -> dict[str, int]:  # noqa: ARG001 - a Share
    """Share by the weights that each layer had before the drop (`nonzeros` in the code of arXiv:1907.04840)."""
    return {name: len(layer.active) for name, layer in layers.items()}


def survivors(layers: Mapping[str, LayerState], dropped: Mapping[str, int]) -> dict[str, int]:
    """Share by the number of weights that each layer has left (DSR, arXiv:1902.05967)."""
    return {name: len(layer.active) - dropped[name] for name, layer in layers.items()}


def weights(layers: Mapping[str, LayerState], dropped: Mapping[str, int]) -> dict[str, int]:  # noqa: ARG001 - a Share
    """Share by the size of the dense weights, which pulls layers to one density (`none` in that code)."""
    return {name: layer.numel for name, layer in layers.items()}


def by_mean(score: Score, *, at_least: int = 0, fill: float = 1.0, overflow: Overflow = "proportional") -> Redistribute:
    """Share the pool in proportion to each layer's mean score over its active weights before the drop.

    With `regrow.score.momentum` this is the redistribution of sparse momentum as the paper has it (arXiv:1907.04840,
    section 3.2), and with `at_least=1, fill=0.99, overflow="equal"` as the authors' code has it. A layer without
    weights has mean zero. A mean that is not finite is a ValueError.

    Args:
        score: what the mean is taken of.
        at_least: as that of `by_share`, and likewise the others.
        fill: the part of a layer's room that is filled.
        overflow: how what does not fit is shared.

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
    return by_share(mean_of(score), at_least=at_least, fill=fill, overflow=overflow)


def mean_of(score: Score) -> Share:
    """Share by the mean score over the active weights of each layer before the drop; a layer without any has zero."""
    return lambda layers, _: _means(score, layers)


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
    return spare_full_by(mean_of(score))


def spare_full_by(share: Share) -> Rates:
    """Do as `spare_full` with another number of each layer than its mean score: its share before anything is dropped.

    Example:
        >>> spare_full_by(weights)({}, 0.5)
        {}
    """

    def rates(layers: Mapping[str, LayerState], rate: float) -> dict[str, float]:
        shares = share(layers, dict.fromkeys(layers, 0))
        average = sum(shares.values()) / max(len(shares), 1)
        result = {}
        for name, layer in layers.items():
            density = len(layer.active) / layer.numel
            spared = density > _NEARLY_FULL and shares[name] > average
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
