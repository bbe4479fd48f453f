"""The budget of multiply-adds: redistribution that keeps what the sparse layers compute within a bound.

The measure is a uniform spread: all layers at the density of the network. Momentum moves weights to early layers,
on large planes, where one weight is used at a thousand times as many positions as in the last ones.

What a layer gets is divided by a power of its cost. That takes from all dear layers in proportion. The nearest to the
unbounded shares in relative entropy, a factor of exp(-x * cost), leaves the dearest layers next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from regrow.core.apportion import apportion
from regrow.core.entries import LayerState
from regrow.core.redistribute import Rates, Redistribute, room_to_grow, unit_sizes

__all__ = ["multiply_adds", "uniform_multiply_adds", "within", "within_rates"]

# Sums of floats in another order differ by less.
_ROUNDING = 1 + 1e-9
# Halvings of the interval of the exponent: it is then known to some parts in ten million.
_HALVINGS = 24
# What counts as the number of a layer that was given none, where the others cannot take all within the bound.
_FOR_NOTHING = 1e-6
# No share is smaller than this beside another of the same count: floats still hold it.
_LEAST_SHARE = 1e-200


def multiply_adds(layers: Mapping[str, LayerState], nonzeros: Mapping[str, int]) -> float:
    """Return the multiply-adds of some layers in the forward pass of a sample.

    Args:
        layers: the layers, with the cost of a weight of each.
        nonzeros: weights of each.

    Raises:
        ValueError: if the cost of a layer is not known.
    """
    return sum(_cost(name, layer) * nonzeros[name] for name, layer in layers.items())


def uniform_multiply_adds(layers: Mapping[str, LayerState], nonzeros: int) -> float:
    """Return the multiply-adds of some layers if so many weights were spread over them at one density.

    Args:
        layers: the layers, with the cost of a weight of each.
        nonzeros: weights of all layers together.

    Raises:
        ValueError: if the cost of a layer is not known.
    """
    numel = {name: layer.numel for name, layer in layers.items()}
    return multiply_adds(layers, numel) * nonzeros / max(sum(numel.values()), 1)


def within(compute: float, redistribute: Redistribute, *, fill: float = 1.0) -> Redistribute:
    """Bound a redistribution: layers then take at most `compute` times the multiply-adds of a uniform spread.

    What `redistribute` gives stays as it is where it is within the bound. Otherwise each layer's number is divided by
    the cost of one of its weights to the power `a`, the smallest that will do, and scaled back to the total. So a layer
    is given less the more its weights cost, and none is left out: what was given anything gets a unit at least.

    An update moves only what it drops. Where that does not suffice, as after a start well above the bound, the cheapest
    layers get all of it, and the next updates go on from there. The bound counts the layers that take part in the
    update.

    Args:
        compute: the bound, in multiply-adds of all layers at one density; above 0, for instance 2.
        redistribute: what is bounded.
        fill: the part of a layer's room that is filled where numbers are changed, unless there are too many to grow.

    Raises:
        ValueError: if `compute` is not above 0; in an update, if the cost of a layer is not known.

    Example:
        >>> import torch
        >>> from regrow.core.entries import Entries
        >>> from regrow.core.redistribute import keep
        >>> def layer(cost):
        ...     entries = [Entries(torch.arange(at, at + 10), torch.ones(10)) for at in (0, 10)]
        ...     return LayerState(*entries, numel=20, shape=(20,), cost=cost)
        >>> def first(layers, dropped, total):
        ...     return {"early": 6, "late": 2}
        >>> layers = {"early": layer(cost=16.0), "late": layer(cost=1.0)}
        >>> within(1.0, first)(layers, {"early": 4, "late": 4}, 8)
        {'early': 4, 'late': 4}
        >>> within(1.1, first)(layers, {"early": 4, "late": 4}, 8)
        {'early': 5, 'late': 3}
    """
    _check(compute)

    def bounded(layers: Mapping[str, LayerState], dropped: Mapping[str, int], total: int) -> dict[str, int]:
        left = {name: len(layer.active) - dropped[name] for name, layer in layers.items()}
        bound = compute * uniform_multiply_adds(layers, sum(left.values()) + total)

        def fits(grown: Mapping[str, int]) -> bool:
            return _fits(multiply_adds(layers, {name: left[name] + grown[name] for name in left}), bound)

        counts = redistribute(layers, dropped, total)
        if fits(counts):
            return counts
        dearer = _dearer(layers)
        sizes, room = unit_sizes(layers), room_to_grow(layers, dropped)
        least = {name: sizes[name] if counts[name] else 0 for name in layers}

        def divided(exponent: float) -> dict[str, int]:
            share = {name: (counts[name] or _FOR_NOTHING) * math.exp(-exponent * dearer[name]) for name in layers}
            return apportion(total, share, room, sizes, at_least=least, fill=fill)

        return _smallest(divided, fits, -math.log(_LEAST_SHARE) / max(max(dearer.values()), 1e-9))

    return bounded


def within_rates(compute: float, rates: Rates) -> Rates:
    """Let layers differ in the share that they drop only while they are within the bound of `within`.

    A layer that is spared keeps what it has, so a network above its bound spares none, until it is within.

    Args:
        compute: as that of `within`.
        rates: what the rates are within the bound.
    """
    _check(compute)

    def bounded(layers: Mapping[str, LayerState], rate: float) -> Mapping[str, float]:
        nonzeros = {name: len(layer.active) for name, layer in layers.items()}
        bound = compute * uniform_multiply_adds(layers, sum(nonzeros.values()))
        return rates(layers, rate) if _fits(multiply_adds(layers, nonzeros), bound) else dict.fromkeys(layers, rate)

    return bounded


def _fits(taken: float, bound: float) -> bool:
    return taken <= bound * _ROUNDING


def _check(compute: float) -> None:
    if not (math.isfinite(compute) and compute > 0):
        raise ValueError(
            f"compute is {compute}: give a number above 0, how many times the multiply-adds of a uniform spread are "
            "allowed, or None for no bound"
        )


def _cost(name: str, layer: LayerState) -> float:
    if layer.cost is None:
        raise ValueError(
            f"the cost of a weight of {name!r} is not known, and a bound on compute needs it: TopologyUpdater observes "
            'it where the recipe\'s `needs` have "cost", in the training passes of the model that it was given; run '
            "some before the update, or leave `compute` out"
        )
    return layer.cost


def _dearer(layers: Mapping[str, LayerState]) -> dict[str, float]:
    """Return the logarithm of each layer's cost over the lowest; what costs nothing counts as half the next lowest."""
    costs = {name: _cost(name, layer) for name, layer in layers.items()}
    nothing = min((cost for cost in costs.values() if cost > 0), default=2.0) / 2
    costs = {name: cost or nothing for name, cost in costs.items()}
    lowest = min(costs.values())
    return {name: math.log(cost / lowest) for name, cost in costs.items()}


def _smallest(
    made: Callable[[float], dict[str, int]], fits: Callable[[Mapping[str, int]], bool], largest: float
) -> dict[str, int]:
    """Return what is made with the smallest exponent that fits, found by halving; with the largest if none does."""
    low, high = 0.0, min(1.0, largest)
    best = made(high)
    while not fits(best):
        if high == largest:
            return best
        low, high = high, min(2 * high, largest)
        best = made(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        counts = made(middle)
        if fits(counts):
            high, best = middle, counts
        else:
            low = middle
    return best
