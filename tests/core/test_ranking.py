"""Rankings over all layers beside plain sorting: how many each drops or grows, in single weights and in units."""

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_update import FRACTIONS, as_states, carry_out, networks, positions

import reference
import regrow
from cases import method
from regrow.redistribute import by_rank, by_share, keep, lowest_of_all, nonzeros, survivors, weights
from regrow.score import gradient, magnitude, momentum


def with_global_prune(recipe, rate, **changes):
    drops = lowest_of_all(magnitude)
    rate = regrow.schedule.constant(rate)
    return dataclasses.replace(recipe, drop=magnitude, drops=drops, rates=None, fraction=rate, **changes)


def ranked_units(layers, field, chosen):
    """Return every unit of the chosen positions as (mean, layer, number, positions), ascending."""
    units = []
    for number, layer in enumerate(layers):
        mask = getattr(layer, chosen)
        for place, unit in enumerate(layer.units()):
            if mask[unit].all():
                mean = math.fsum(abs(float(getattr(layer, field)[i])) for i in unit) / len(unit)
                units.append((mean, number, place, unit))
    return sorted(units)


def lowest_by_hand(layers, wanted, least=0):
    """Return the units that leave: in the order of the ranking, but the last ones of layers after all others."""
    ranking = ranked_units(layers, "weight", "active")
    last = {number: unit for _, number, _, unit in ranking}
    first = [(number, unit) for _, number, _, unit in ranking if unit != last[number]]
    left = [set() for _ in layers]
    gone = 0
    for number, unit in first:
        if gone < max(wanted, least):
            left[number] |= set(unit)
            gone += len(unit)
    for _, number, _, unit in ranking:
        if unit == last[number] and gone < least:
            left[number] |= set(unit)
            gone += len(unit)
    return left


@given(layers=networks(), rate=FRACTIONS)
def test_the_lowest_of_all_layers_leave_exactly_as_many(layers, rate):
    recipe = with_global_prune(method("set").recipe(), rate, redistribute=keep)
    wanted = math.ceil(rate * sum(int(layer.active.sum()) for layer in layers))
    dropped = [set(drop) for drop, _ in carry_out(recipe, layers)]
    assert dropped == lowest_by_hand(layers, wanted)
    for layer, drop in zip(layers, dropped, strict=True):
        assert len(drop) < layer.active.sum() or not layer.active.any()


@given(layers=networks(units=[(1, 1)]), rate=FRACTIONS, density=FRACTIONS)
def test_a_density_that_falls_is_met_by_the_lowest_of_all_layers(layers, rate, density):
    density = regrow.schedule.constant(density)
    recipe = with_global_prune(method("set").recipe(), rate, redistribute=keep, density=density)
    existing, numel = (
        sum(int(n) for n in ns) for ns in zip(*((x.active.sum(), len(x.weight)) for x in layers), strict=True)
    )
    surplus = existing - round(density(1) * numel)
    room = existing + sum(int(layer.candidate.sum()) for layer in layers)
    if existing - surplus > room:
        return  # there are not so many positions
    changes = carry_out(recipe, layers)
    dropped = [set(drop) for drop, _ in changes]
    assert dropped == lowest_by_hand(layers, math.ceil(rate * existing), surplus)
    assert sum(map(len, dropped)) - sum(len(grow) for _, grow in changes) == surplus


def test_a_count_takes_the_place_of_the_fraction():
    layers = {"a": state([0.1, 5.0, 6.0]), "b": state([0.2, 0.3, 7.0])}
    assert lowest_of_all(magnitude, count=2)(layers, 0.9, 0) == {"a": 1, "b": 1}
    assert lowest_of_all(magnitude, count=2)(layers, 0.0, 4) == {"a": 2, "b": 2}
    assert lowest_of_all(magnitude, count=99)(layers, 0.0, 0) == {"a": 2, "b": 2}
    with pytest.raises(ValueError, match="count is -1"):
        lowest_of_all(magnitude, count=-1)


def test_the_last_weight_of_a_layer_leaves_only_where_it_must():
    layers = {"small": state([0.1, 0.2]), "large": state([3.0, 4.0, 5.0])}
    assert lowest_of_all(magnitude)(layers, 0.6, 0) == {"small": 1, "large": 2}
    assert lowest_of_all(magnitude)(layers, 0.0, 4) == {"small": 2, "large": 2}
    assert lowest_of_all(magnitude)(layers, 1.0, 5) == {"small": 2, "large": 3}


def state(weight, absent=4):
    index = torch.arange(len(weight) + absent)
    parts = index[: len(weight)], index[len(weight) :]
    return regrow.LayerState(
        regrow.Entries(parts[0], torch.tensor(weight)),
        regrow.Entries(parts[1], torch.zeros(absent)),
        len(index),
        (len(index),),
    )


@pytest.mark.parametrize(("score", "field"), [(momentum, "momentum"), (gradient, "grad")])
@given(layers=networks(units=[(1, 1), (2, 1)]), rate=FRACTIONS)
def test_one_ranking_over_all_layers_decides_what_grows(score, field, layers, rate):
    recipe = dataclasses.replace(
        method("rigl").recipe(),
        grow=score,
        redistribute=by_rank(score),
        fraction=regrow.schedule.constant(rate),
        keep_returning=False,
    )
    changes = carry_out(recipe, layers)
    if len({layer.size for layer in layers}) > 1:
        return  # units of several sizes: only the sum is promised, which the update checks
    total = sum(len(drop) for drop, _ in changes)
    for layer, (drop, _) in zip(layers, changes, strict=True):
        layer.candidate[drop] = True  # what was just dropped is offered with the rest
    ranking = ranked_units(layers, field, "candidate")
    ranking.sort(key=lambda unit: (-unit[0], unit[1], unit[2]))
    grown = [set() for _ in layers]
    for _, number, _, unit in ranking[: total // layers[0].size]:
        grown[number] |= set(unit)
    assert [set(grow) for _, grow in changes] == grown


@given(layers=networks(), rate=FRACTIONS)
def test_a_recipe_may_say_that_nothing_returns_at_once(layers, rate):
    recipe = dataclasses.replace(
        method("set").recipe(),
        fraction=regrow.schedule.constant(rate),
        may_return=False,
        redistribute=by_share(weights),
    )
    free = sum(int(layer.candidate.sum()) for layer in layers)
    changes = carry_out(recipe, layers)
    total = sum(len(drop) for drop, _ in changes)
    sizes = [layer.size for layer in layers]
    made = (
        reference.nearest_below(total, [int(layer.candidate.sum()) for layer in layers], sizes) if total <= free else 0
    )
    if made == total:
        assert all(not set(drop) & set(grow) for drop, grow in changes)
    for layer, (drop, grow) in zip(layers, changes, strict=True):
        assert set(grow) <= positions(layer.candidate) | set(drop)


@pytest.mark.parametrize(
    ("share", "shares"),
    [
        (nonzeros, lambda layer, gone: int(layer.active.sum())),
        (survivors, lambda layer, gone: int(layer.active.sum()) - gone),
        (weights, lambda layer, gone: len(layer.weight)),
    ],
    ids=["nonzeros", "survivors", "weights"],
)
@given(layers=networks(units=[(1, 1)]), data=st.data())
def test_shares_by_numbers_of_weights(share, shares, layers, data):
    dropped = [data.draw(st.integers(0, int(layer.active.sum()))) for layer in layers]
    states, total = as_states(layers), sum(dropped)
    room = [int(layer.candidate.sum()) + gone for layer, gone in zip(layers, dropped, strict=True)]
    numbers = [shares(layer, gone) for layer, gone in zip(layers, dropped, strict=True)]
    expected = reference.apportion(total, [Fraction(n) for n in numbers], room) if any(numbers) else None
    found = by_share(share)(states, dict(zip(states, dropped, strict=True)), total)
    assert sum(found.values()) == total
    if expected is not None:
        assert list(found.values()) == expected


@pytest.mark.parametrize(
    ("drops", "message"),
    [
        (lambda layers, fraction, least: {}, "drops gave 0 weights of 0 layers"),
        (lambda layers, fraction, least: {"a": 4, "b": 0}, "drops gave 4 weights of 'a', which has 3"),
        (lambda layers, fraction, least: {"a": -1, "b": 1}, "drops gave -1 weights of 'a'"),
    ],
)
def test_drops_that_cannot_be_are_an_error(drops, message):
    recipe = dataclasses.replace(method("set").recipe(), drops=drops)
    with pytest.raises(ValueError, match=message):
        regrow.update(recipe, {"a": state([1.0, 2.0, 3.0]), "b": state([1.0])}, 1, torch.Generator())
    with pytest.raises(ValueError, match="rates and drops both say"):
        dataclasses.replace(recipe, rates=regrow.redistribute.spare_full(magnitude))


def test_a_ranking_refuses_nan():
    with pytest.raises(ValueError, match="diverged; lower the learning rate"):
        lowest_of_all(magnitude)({"a": state([1.0, float("nan")])}, 0.5, 0)
