"""The pure function that carries out one update of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from regrow.core.apportion import apportion, reachable
from regrow.core.entries import Change, Entries, LayerState
from regrow.core.extreme import extreme
from regrow.core.positions import find
from regrow.core.recipe import Recipe, check_rate
from regrow.core.redistribute import room_to_grow, unit_sizes
from regrow.core.rewire import Moves, Rewire
from regrow.core.score import Score, unit_means

__all__ = ["update"]


def update(
    recipe: Recipe, layers: Mapping[str, LayerState], step: int, generator: torch.Generator
) -> dict[str, Change]:
    """Carry out one update: in each layer drop, pool what was dropped, redistribute it, and grow.

    What was just dropped is offered for growth with the rest, with the weight it had, unless the recipe says that it
    may not return. Pure: nothing passed in is changed but the generator. The number of nonzeros over all layers stays
    exactly the same, or meets `round(recipe.density(step) * weights)` exactly. Ties fall to the lower index.

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

    offering = _with_absent(recipe, layers, dropped, grow_total)
    grow_counts = recipe.redistribute(offering, drop_counts, grow_total)
    _check_counts(grow_counts, grow_total, room_to_grow(offering, drop_counts), unit_sizes(layers))

    changes: dict[str, Change] = {}
    for name in layers:
        layer = offering.pop(name)  # what is read of its absent weights may be as large as the dense weight
        if recipe.rewire is None:
            changes[name] = _ranked(recipe, name, layer, dropped[name], grow_counts[name])
        else:
            size, last = layer.unit_size, not offering
            moves = Moves(drop_counts[name] // size, grow_counts[name] // size, step, last)
            changes[name] = _rewired(recipe.rewire, recipe, name, layer, moves)
    return changes


def _ranked(recipe: Recipe, name: str, layer: LayerState, dropped: Entries, count: int) -> Change:
    """Return the change of a layer in which what leads the rankings moves."""
    absent = layer.absent
    assert absent is not None
    joining = _joining(recipe, name, layer, absent, count)
    drop, grow = dropped.index, absent.index_at(joining).sort().values
    if layer.unit_size > 1:
        drop = drop.sort().values
    returns = find(drop, grow)[1]
    returned = int(returns.sum())
    if recipe.keep_returning:
        drop, grow = drop[~returns], grow[~find(grow, drop)[1]]
    return Change(drop, grow, returned)


def _rewired(rewire: Rewire, recipe: Recipe, name: str, layer: LayerState, moves: Moves) -> Change:
    """Return the change of a layer that a recipe rewires."""
    leaving, joining = rewire(layer, recipe.drop, recipe.grow, moves)
    for what, units, entries in (("leave", leaving, layer.active), ("join", joining, layer.candidates)):
        there = len(entries) // layer.unit_size
        if len(units) and not (bool((units.diff() > 0).all()) and int(units[0]) >= 0 and int(units[-1]) < there):
            raise ValueError(
                f"rewire gave units of {name!r} to {what} that are not among the {there} there are, or not ascending: "
                "make it return numbers of active units and of candidates, ascending and each once"
            )
    if len(joining) - len(leaving) != moves.grow - moves.drop:
        raise ValueError(
            f"rewire lets {len(leaving)} units of {name!r} leave and {len(joining)} join, but {moves.grow} more are to "
            f"join and {moves.drop} to leave: make it return as many more to join than to leave"
        )
    size = layer.unit_size
    drop, grow = layer.active.index_at(_members(leaving, size)), layer.candidates.index_at(_members(joining, size))
    return Change(drop.sort().values, grow.sort().values)


def _with_generator(layer: LayerState, generator: torch.Generator) -> LayerState:
    active, candidates = layer.active.with_generator(generator), layer.candidates.with_generator(generator)
    return replace(layer, active=active, candidates=candidates)


def _with_absent(
    recipe: Recipe, layers: Mapping[str, LayerState], dropped: Mapping[str, Entries], total: int
) -> dict[str, LayerState]:
    """Return the layers with what may be grown in each."""
    free = {name: len(layer.candidates) for name, layer in layers.items()}
    enough = total <= sum(free.values()) and reachable(total, free, unit_sizes(layers)) == total
    if enough and not recipe.may_return:
        return {name: replace(layer, absent=layer.candidates) for name, layer in layers.items()}
    return {name: replace(layer, absent=layer.candidates.join(dropped[name])) for name, layer in layers.items()}


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
    # The first weights of units are in the order of the units.
    first = entries.index_at if size == 1 else lambda at: entries.index_at(at * size)
    return _members(extreme(unit_means(score, entries, size), count // size, first, largest=largest), size)


def _joining(recipe: Recipe, name: str, layer: LayerState, absent: Entries, count: int) -> Tensor:
    """Return the ascending numbers of the absent entries that grow."""
    size = layer.unit_size
    if recipe.pick is None:
        return _extreme(recipe.grow, absent, count, size, largest=True)
    units = recipe.pick(layer, recipe.grow, count // size)
    if units.shape != (count // size,) or (count and not bool((units.diff() > 0).all())):
        raise ValueError(
            f"pick gave {tuple(units.shape)} numbers for {count // size} units to grow in {name!r}: make it return as "
            "many as it was asked for, ascending and each once"
        )
    return _members(units, size)


def _members(units: Tensor, size: int) -> Tensor:
    """Return the numbers of the entries of units."""
    return units if size == 1 else (units[:, None] * size + torch.arange(size, device=units.device)).flatten()


def _count(recipe: Recipe, layers: Mapping[str, LayerState], step: int) -> tuple[dict[str, int], int]:
    """Return how many weights each layer drops and how many are grown in all."""
    fraction = recipe.fraction(step)
    check_rate(fraction, "fraction to drop", step)
    nonzeros = sum(len(layer.active) for layer in layers.values())
    surplus = 0
    if recipe.density is not None:
        density = recipe.density(step)
        check_rate(density, "density", step)
        surplus = nonzeros - round(density * sum(layer.numel for layer in layers.values()))
    leaving = _leaving(recipe, layers, step, fraction, max(surplus, 0))
    if recipe.density is None:
        drops = leaving(0)
        return drops, sum(drops.values())
    return _meet(surplus, leaving, layers)


def _leaving(
    recipe: Recipe, layers: Mapping[str, LayerState], step: int, fraction: float, least: int
) -> Callable[[int], dict[str, int]]:
    """Return a function from a number of weights to what each layer drops if so many more leave than must.

    Args:
        recipe: the algorithm.
        layers: the layers.
        step: optimizer steps taken so far.
        fraction: of the step.
        least: weights that must leave.
    """
    sizes = unit_sizes(layers)
    nonzeros = {name: len(layer.active) for name, layer in layers.items()}
    if recipe.drops is not None:
        decide = recipe.drops

        def decided(more: int) -> dict[str, int]:
            counts = dict(decide(layers, fraction, min(least + more, sum(nonzeros.values()))))
            _check_drops(counts, least, nonzeros, sizes)
            return counts

        return decided

    rates = _rates(recipe, layers, step, fraction)
    rounded = math.ceil if recipe.rounding == "up" else math.floor
    drops = {name: rounded(rates[name] * (nonzeros[name] // sizes[name])) * sizes[name] for name in layers}

    def proportional(more: int) -> dict[str, int]:
        total = max(sum(drops.values()), least) + more
        return drops if total == sum(drops.values()) else apportion(total, nonzeros, nonzeros, sizes)

    return proportional


def _check_drops(counts: Mapping[str, int], least: int, nonzeros: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    """Refuse what `drops` of a recipe returned if it cannot be carried out."""
    if counts.keys() != nonzeros.keys() or sum(counts.values()) < least:
        raise ValueError(
            f"drops gave {sum(counts.values())} weights of {len(counts)} layers, but at least {least} of "
            f"{len(nonzeros)} must leave: make it return a count for every layer, in all as many as it is asked for"
        )
    for name, count in counts.items():
        if not 0 <= count <= nonzeros[name] or count % sizes[name]:
            raise ValueError(
                f"drops gave {count} weights of {name!r}, which has {nonzeros[name]} in units of {sizes[name]}: give "
                "whole units that are there"
            )


def _rates(recipe: Recipe, layers: Mapping[str, LayerState], step: int, fraction: float) -> Mapping[str, float]:
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


def _meet(
    surplus: int, leaving: Callable[[int], dict[str, int]], layers: Mapping[str, LayerState]
) -> tuple[dict[str, int], int]:
    """Return how many weights each layer drops and how many are grown in all, so that `surplus` weights fewer exist.

    If whole units cannot make that, the next larger number of weights is taken away that they can make.

    Args:
        surplus: weights to take away; negative to add.
        leaving: what each layer drops if so many more leave than must.
        layers: the layers.
    """
    sizes = unit_sizes(layers)
    most = sum(len(layer.active) for layer in layers.values())
    best: tuple[dict[str, int], int] | None = None
    missed = 0
    # Where units have several sizes, dropping a few more may make a sum that could not be made otherwise.
    largest = max(sizes.values(), default=1)
    for further in range(min(2 * largest**2, most) + 1):
        drops = leaving(further)
        total = sum(drops.values())
        if total < surplus:
            continue
        wanted, room = total - surplus, room_to_grow(layers, drops)
        if wanted > sum(room.values()):
            raise ValueError(
                f"the density asks for {wanted} weights to grow, but there are {sum(room.values())} to choose from: "
                "let growth look at all absent weights (regrow.growth.window, not candidates), or train all layers"
            )
        grown = reachable(wanted, room, sizes)
        if best is None or wanted - grown < missed:
            best, missed = (drops, grown), wanted - grown
        if not missed or total == most:
            break
    assert best is not None, "dropping every weight is always possible"
    return best
