"""Redistribution within a budget of multiply-adds, beside a search over exponents in plain numbers."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regrow
from regrow import Entries, LayerState
from regrow.redistribute import by_mean, keep, spare_full, within, within_rates
from regrow.score import magnitude


def layer(active, numel, cost, size=1.0, unit=(1, 1)):
    """Return a layer whose first weights exist, all of one size."""
    index = torch.arange(numel)
    scores = torch.full((numel,), float(size))
    first, rest = (Entries(index[at], scores[at], momentum=scores[at]) for at in (index < active, index >= active))
    return LayerState(first, rest, numel, (numel // unit[1], unit[1]), unit, cost)


def after(layers, dropped, grown):
    return {name: len(layer.active) - dropped[name] + grown[name] for name, layer in layers.items()}


def taken(layers, nonzeros):
    return sum(layer.cost * nonzeros[name] for name, layer in layers.items())


def allowed(layers, compute, nonzeros):
    numel = sum(layer.numel for layer in layers.values())
    return compute * sum(layer.cost * layer.numel for layer in layers.values()) * nonzeros / numel


def searched(layers, dropped, shares, total, compute):
    """Return the numbers, not yet whole, of the smallest exponent that fits, among many in small steps."""
    for exponent in (step / 1000 for step in range(20_000)):
        weights = {name: shares[name] / layers[name].cost ** exponent for name in layers}
        grown = {name: total * weight / sum(weights.values()) for name, weight in weights.items()}
        nonzeros = after(layers, dropped, grown)
        if taken(layers, nonzeros) <= allowed(layers, compute, sum(nonzeros.values())):
            return grown
    raise AssertionError("no exponent fits")


@pytest.mark.parametrize("compute", [1.0, 1.1, 1.2, 1.4, 9.0])
def test_the_smallest_exponent_that_fits_is_found(compute):
    costs, sizes = (1024.0, 256.0, 64.0, 16.0, 4.0), (9.0, 6.0, 3.0, 2.0, 1.0)
    layers = {
        f"{n}": layer(5_000, 100_000, cost, size) for n, (cost, size) in enumerate(zip(costs, sizes, strict=True))
    }
    dropped = dict.fromkeys(layers, 2_500)
    plain = by_mean(magnitude)
    grown = within(compute, plain)(layers, dropped, 12_500)
    expected = searched(layers, dropped, plain(layers, dropped, 12_500), 12_500, compute)
    assert sum(grown.values()) == 12_500
    for name, number in grown.items():
        # the steps of the search, and whole weights
        assert number == pytest.approx(expected[name], abs=2 + 0.005 * expected[name])
    nonzeros = after(layers, dropped, grown)
    assert taken(layers, nonzeros) <= allowed(layers, compute, 25_000) * (1 + 1e-9)
    assert compute == 9 or taken(layers, nonzeros) > 0.999 * allowed(layers, compute, 25_000)


@st.composite
def networks(draw):
    """Draw layers of several costs, sizes, densities and units, and what each drops."""
    layers, dropped = {}, {}
    for number in range(draw(st.integers(1, 6))):
        unit = draw(st.sampled_from([(1, 1), (1, 4)]))
        size = unit[1]
        units = draw(st.integers(2, 400))
        active = draw(st.integers(0, units))
        dropped[f"{number}"] = draw(st.integers(0, active)) * size
        cost = draw(st.sampled_from([0.0, 1.0, 4.0, 64.0, 1024.5]))
        layers[f"{number}"] = layer(
            active * size, units * size, cost, draw(st.sampled_from([0.0, 0.1, 1.0, 7.0])), unit
        )
    return layers, dropped


def cheapest_first(layers, dropped, total, least):
    """Return numbers that take the fewest multiply-adds: each layer its least, then the cheapest all they can."""
    room = {name: len(layer.candidates) + dropped[name] for name, layer in layers.items()}
    grown = {name: min(least[name], room[name]) for name in layers}
    if sum(grown.values()) > total:
        grown = dict.fromkeys(layers, 0)
    for name in sorted(layers, key=lambda name: layers[name].cost):
        grown[name] += min(total - sum(grown.values()), room[name] - grown[name])
    return grown


@given(drawn=networks(), compute=st.sampled_from([0.5, 1.0, 1.3, 2.0, 5.0]))
def test_it_stays_within_wherever_that_can_be_done(drawn, compute):
    layers, dropped = drawn
    total = sum(dropped.values())
    plain = by_mean(magnitude, at_least=1)
    unbounded, grown = plain(layers, dropped, total), within(compute, plain)(layers, dropped, total)
    assert sum(grown.values()) == total
    assert all(grown[name] % layer.unit_size == 0 for name, layer in layers.items())
    assert all(0 <= grown[name] <= len(layer.candidates) + dropped[name] for name, layer in layers.items())
    bound = allowed(layers, compute, sum(after(layers, dropped, grown).values()))
    if taken(layers, after(layers, dropped, unbounded)) <= bound:
        assert grown == unbounded
        return
    taking = taken(layers, after(layers, dropped, grown))
    least = {name: layer.unit_size if unbounded[name] else 0 for name, layer in layers.items()}
    # units of several sizes may be exchanged to make the total
    exchanged = len({each.unit for each in layers.values()}) > 1
    if sum(least.values()) <= total and not exchanged:
        assert all(grown[name] >= least[name] for name in layers)
    slack = 8 * max(layer.cost for layer in layers.values()) if exchanged else 0
    fewest = taken(layers, after(layers, dropped, cheapest_first(layers, dropped, total, least)))
    if fewest + slack <= bound:
        assert taking <= bound * (1 + 1e-9)
    else:
        assert taking <= fewest * (1 + 1e-9) + slack


def test_a_network_at_the_bound_stays_there_whatever_the_momentum():
    layers = {"early": layer(50, 100, 512.0, 9.0), "late": layer(500, 1000, 2.0)}
    for recipe in (regrow.sparse_momentum(every=1, steps=9, compute=1), regrow.sparse_momentum(every=1, steps=9)):
        changes = regrow.update(recipe, layers, 1, torch.Generator())
        grown = {name: len(change.grow) - len(change.drop) for name, change in changes.items()}
        assert sum(grown.values()) == 0
        assert (grown["early"] <= 0) is ("cost" in recipe.needs)


def test_a_start_above_the_bound_comes_down_to_it_and_full_layers_are_not_spared_until_then():
    shapes = {"early": (900, 1000, 64.0, 9.0), "late": (100, 19_000, 1.0, 1.0)}
    nonzeros = {name: active for name, (active, *_) in shapes.items()}
    recipe = regrow.sparse_momentum(every=1, steps=1000, prune_rate=0.2, compute=2)
    seen = []
    for _ in range(14):
        layers = {name: layer(nonzeros[name], numel, cost, size) for name, (_, numel, cost, size) in shapes.items()}
        changes = regrow.update(recipe, layers, 1, torch.Generator())
        # all weights of a layer are alike, so what is dropped may return: the counts are what matters
        nonzeros = {name: nonzeros[name] + len(c.grow) - len(c.drop) for name, c in changes.items()}
        assert sum(nonzeros.values()) == 1000
        seen.append(taken(layers, nonzeros) / allowed(layers, 1, 1000))
    assert seen[0] > seen[1] > seen[2] > 2
    assert all(1.9 < each <= 2 + 1e-9 for each in seen[-2:])
    full = {"early": layer(900, 1000, 64.0, 9.0), "late": layer(100, 19_000, 1.0, 1.0)}
    assert within_rates(2, spare_full(magnitude))(full, 0.2) == {"early": 0.2, "late": 0.2}
    assert within_rates(99, spare_full(magnitude))(full, 0.2)["early"] == pytest.approx(0.1)


def test_layers_of_one_cost_and_layers_that_cost_nothing_are_bounded_by_nothing():
    for costs in ((1.0, 1.0), (0.0, 0.0), (7.0, 7.0)):
        layers = {"a": layer(50, 100, costs[0], 9.0), "b": layer(50, 1000, costs[1])}
        assert within(1, by_mean(magnitude))(layers, {"a": 25, "b": 25}, 50) == {"a": 45, "b": 5}
    free = {"a": layer(50, 100, 9.0, 9.0), "b": layer(50, 100, 0.0)}
    assert within(1, by_mean(magnitude))(free, {"a": 25, "b": 25}, 50) == {"a": 25, "b": 25}


def test_the_density_that_a_schedule_asks_for_is_what_counts():
    recipe = dataclasses.replace(
        regrow.sparse_momentum(every=1, steps=9, compute=1), density=regrow.schedule.constant(0.25), rates=None
    )
    layers = {"early": layer(50, 100, 64.0, 9.0), "late": layer(500, 1000, 1.0)}
    changes = regrow.update(recipe, layers, 1, torch.Generator())
    nonzeros = {name: len(layers[name].active) + len(c.grow) - len(c.drop) for name, c in changes.items()}
    assert sum(nonzeros.values()) == 275
    assert taken(layers, nonzeros) <= allowed(layers, 1, 275)


def test_a_cost_that_is_not_known_is_an_error_with_the_name_of_the_layer():
    layers = {"a": layer(50, 100, 9.0), "b": layer(50, 100, None)}
    with pytest.raises(ValueError, match=r"cost of a weight of 'b' is not known.*leave `compute` out"):
        within(2, keep)(layers, {"a": 1, "b": 1}, 2)
    with pytest.raises(ValueError, match=r"cost of a weight of 'b' is not known"):
        within_rates(2, spare_full(magnitude))(layers, 0.5)


@pytest.mark.parametrize("compute", [0, -1.0, float("nan"), float("inf")])
def test_a_bound_that_is_none_is_an_error(compute):
    with pytest.raises(ValueError, match=r"compute is .*: give a number above 0"):
        regrow.sparse_momentum(every=1, steps=9, compute=compute)
    with pytest.raises(ValueError, match=r"compute is .*: give a number above 0"):
        within_rates(compute, spare_full(magnitude))
