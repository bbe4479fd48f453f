"""The pure function that carries out one update of a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from regrow.core.apportion import apportion, reachable
from regrow.core.entries import Change, Entries, LayerState
from regrow.core.extreme import extreme
from regrow.core.positions import find
from regrow.core.recipe import Recipe, check_rate
from regrow.core.redistribute import room_to_grow, unit_sizes
from regrow.core.score import Score

__all__ = ["update"]


def update(
    recipe: Recipe, layers: Mapping[str, LayerState], step: int, generator: torch.Generator
) -> dict[str, Change]:
    """Carry out one update: in each layer drop, pool what was dropped, redistribute it, and grow.

    What was just dropped is offered for growth with the rest, with the weight it had. Pure: nothing passed in is
    changed but the generator. The number of nonzeros over all layers stays exactly the same, or meets
    `round(recipe.density(step) * weights)` exactly. Ties fall to the lower index.

    Units are dropped and grown whole: scores are means over their weights, and the fraction counts units, rounded as
    the recipe says. If no choice of whole units meets the density exactly, the number of nonzeros is the nearest below.

    Args:
        recipe: the algorithm.
        layers: every layer that takes part, by name; the order decides ties between layers.
        step: optimizer steps taken so far.
        generator: the only source of randomness.

    Returns:
        For each layer the positions that leave and those that join. A dropped weight may come back, at zero; it is in
        neither if the recipe keeps returning weights.

    Raises:
        ValueError: if a fraction or the density is outside its range, a score is NaN or has a wrong shape, a layer
            holds part of a unit, or the redistribution does not hand out exactly the total in whole units.

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
    for name, layer in layers.items():
        _check_units(name, layer)
    drop_counts, grow_total = _count(recipe, layers, step)

    dropped: dict[str, Entries] = {}
    for name, layer in layers.items():
        leaving = _extreme(recipe.drop, layer.active, drop_counts[name], layer.unit_size, largest=False)
        dropped[name] = layer.active.select(leaving)

    grow_counts = recipe.redistribute(layers, drop_counts, grow_total)
    _check_counts(grow_counts, grow_total, room_to_grow(layers, drop_counts), unit_sizes(layers))

    changes: dict[str, Change] = {}
    for name, layer in layers.items():
        absent = layer.candidates.join(dropped[name])
        joining = _extreme(recipe.grow, absent, grow_counts[name], layer.unit_size, largest=True)
        drop, grow = dropped[name].index, absent.index_at(joining).sort().values
        if layer.unit_size > 1:
            drop = drop.sort().values
        returns = find(drop, grow)[1]
        returned = int(returns.sum())
        if recipe.keep_returning:
            drop, grow = drop[~returns], grow[~find(grow, drop)[1]]
        changes[name] = Change(drop, grow, returned)
    return changes


def _with_generator(layer: LayerState, generator: torch.Generator) -> LayerState:
    active, candidates = layer.active.with_generator(generator), layer.candidates.with_generator(generator)
    return replace(layer, active=active, candidates=candidates)


def _check_units(name: str, layer: LayerState) -> None:
    for kind, entries in (("active weights", layer.active), ("candidates", layer.candidates)):
        if len(entries) % layer.unit_size:
            raise ValueError(
                f"{name!r} has {len(entries)} {kind}, which are no whole units of {layer.unit_size} weights: give all "
                "weights of a unit, one unit after the other"
            )


def _check_counts(counts: Mapping[str, int], total: int, room: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    """Refuse what a redistribution returned if it would not keep the number of nonzeros."""
    if counts.keys() != room.keys() or sum(counts.values()) != total:
        raise ValueError(
            f"redistribute gave {sum(counts.values())} weights to {len(counts)} layers, but there are {total} to hand "
            f"out to {len(room)}: make it return a count for every layer that sums to the total, as apportion does"
        )
    for name, count in counts.items():
        if not 0 <= count <= room[name]:
            raise ValueError(f"redistribute gave {count} weights to {name!r}, which can grow 0 to {room[name]}")
        if count % sizes[name]:
            raise ValueError(
                f"redistribute gave {count} weights to {name!r}, no whole units of {sizes[name]} weights: give "
                "multiples of each layer's unit_size, as apportion does where it is told the sizes"
            )


def _extreme(score: Score, entries: Entries, count: int, size: int, *, largest: bool) -> Tensor:
    """Return the ascending numbers of the `count` entries in units of highest or lowest score, ties to the lower unit.

    Args:
        score: the score of each entry.
        entries: the entries, unit after unit.
        count: entries, a multiple of `size`.
        size: entries in a unit.
        largest: whether the highest are wanted.
    """
    scores = score(entries)
    if scores.shape != (len(entries),):
        raise ValueError(f"a score of shape {tuple(scores.shape)} for {len(entries)} entries: give one for each")
    if size == 1:
        return extreme(scores, count, entries.index_at, largest=largest)
    # A mean in half precision would tie what differs.
    means = scores.view(-1, size).mean(dim=1, dtype=torch.promote_types(scores.dtype, torch.float32))
    # The first weights of units are in the order of the units.
    units = extreme(means, count // size, lambda at: entries.index_at(at * size), largest=largest)
    return (units[:, None] * size + torch.arange(size, device=units.device)).flatten()


def _count(recipe: Recipe, layers: Mapping[str, LayerState], step: int) -> tuple[dict[str, int], int]:
    """Return how many weights each layer drops and how many are grown in all."""
    rates = _rates(recipe, layers, step)
    sizes = unit_sizes(layers)
    nonzeros = {name: len(layer.active) for name, layer in layers.items()}
    rounded = math.ceil if recipe.rounding == "up" else math.floor
    drops = {name: rounded(rates[name] * (nonzeros[name] // sizes[name])) * sizes[name] for name in layers}
    if recipe.density is None:
        return drops, sum(drops.values())

    density = recipe.density(step)
    check_rate(density, "density", step)
    target = round(density * sum(layer.numel for layer in layers.values()))
    surplus = sum(nonzeros.values()) - target
    return _meet(surplus, drops, layers)


def _rates(recipe: Recipe, layers: Mapping[str, LayerState], step: int) -> Mapping[str, float]:
    fraction = recipe.fraction(step)
    check_rate(fraction, "fraction to drop", step)
    if recipe.rates is None:
        return dict.fromkeys(layers, fraction)
    rates = recipe.rates(layers, fraction)
    if rates.keys() != layers.keys():
        raise ValueError(
            f"rates named {', '.join(map(repr, rates)) or 'no layer'}, but the layers are "
            f"{', '.join(map(repr, layers))}: make it return a rate for every layer and for no other"
        )
    for name, rate in rates.items():
        check_rate(rate, f"rate of {name!r}", step)
    return rates


def _meet(surplus: int, drops: dict[str, int], layers: Mapping[str, LayerState]) -> tuple[dict[str, int], int]:
    """Return how many weights each layer drops and how many are grown in all, so that `surplus` weights fewer exist.

    If whole units cannot make that, the next larger number of weights is taken away that they can make.

    Args:
        surplus: weights to take away; negative to add.
        drops: how many weights each layer drops at least, unless more must leave.
        layers: the layers.
    """
    sizes = unit_sizes(layers)
    nonzeros = {name: len(layer.active) for name, layer in layers.items()}
    least, most = max(sum(drops.values()), surplus), sum(nonzeros.values())
    best: tuple[dict[str, int], int] | None = None
    missed = 0
    # Where units have several sizes, dropping a few more may make a sum that could not be made otherwise.
    largest = max(sizes.values(), default=1)
    for total in range(least, min(most, least + 2 * largest**2) + 1):
        if total > sum(drops.values()):
            more = apportion(total, nonzeros, nonzeros, sizes)
            if sum(more.values()) != total:
                continue
        else:
            more = drops
        wanted, room = total - surplus, room_to_grow(layers, more)
        # where there is no room for so many, the redistribution says so
        grown = reachable(wanted, room, sizes) if wanted <= sum(room.values()) else wanted
        if best is None or wanted - grown < missed:
            best, missed = (more, grown), wanted - grown
        if not missed:
            break
    assert best is not None, "dropping every weight is always possible"
    return best
