import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
import regrow
from cases import METHODS, each_method, each_method_with_reference
from cases import method as row
from regrow import Entries, LayerState, update
from regrow.core.units import fitting_unit

ABSENT, CANDIDATE, ACTIVE = 0, 1, 2  # absent: neither exists nor may be grown
# Few different values, exact in every dtype: ties everywhere, weights that exist and are zero.
NUMBERS = st.integers(-4, 4).map(lambda n: n / 4)
FRACTIONS = st.floats(0, 1)
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


UNITS = [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2)]
SIDES = st.sampled_from([1, 2, 3, 4, 6])


@st.composite
def networks(draw, kinds=(ABSENT, CANDIDATE, ACTIVE), units=UNITS):
    """Draw the layers of a network as the reference has them, in units of one size or, where sides differ, of several.

    Sides that the unit does not divide take the largest divisor.
    """
    layers = []
    asked = draw(st.sampled_from(units))
    for _ in range(draw(st.integers(1, 4))):
        shape = (draw(st.integers(1, 20)),) if asked == (1, 1) else tuple(draw(st.lists(SIDES, min_size=1, max_size=2)))
        if len(shape) > 1 and draw(st.booleans()):
            shape = (*shape, draw(st.integers(1, 2)))
        unit = fitting_unit((shape[0], shape[1] if len(shape) > 1 else 1), asked)
        numel, blocks = math.prod(shape), reference.units_of(shape, unit)
        kind = np.zeros(numel, dtype=int)
        for block, its in zip(blocks, draw(st.tuples(*(st.sampled_from(kinds) for _ in blocks))), strict=True):
            kind[block] = its
        values = [np.array(draw(st.lists(NUMBERS, min_size=numel, max_size=numel))) for _ in range(3)]
        weight = np.where(kind == ACTIVE, values[0], 0)
        layers.append(
            reference.Layer(weight, kind == ACTIVE, kind == CANDIDATE, values[1], values[2], shape, unit),
        )
    return layers


def as_states(layers, dtype=torch.float64):
    def entries(layer, chosen):
        at = torch.tensor([i for unit in layer.units() for i in unit if chosen[i]], dtype=torch.int64)
        dense = (layer.weight, layer.grad, layer.momentum)
        return Entries(at, *(torch.from_numpy(field).to(dtype)[at] for field in dense))

    return {
        f"{i}.weight": LayerState(
            entries(layer, layer.active),
            entries(layer, layer.candidate),
            len(layer.weight),
            layer.shape or (len(layer.weight),),
            layer.unit,
        )
        for i, layer in enumerate(layers)
    }


def with_rate(recipe, rate):
    return dataclasses.replace(recipe, fraction=regrow.schedule.constant(rate), density=None)


def returning_anew(recipe, rate):
    """Return the recipe with weights that return named among what leaves and what joins."""
    return dataclasses.replace(with_rate(recipe, rate), keep_returning=False)


def carry_out(recipe, layers, seed=0, dtype=torch.float64):
    """Return the changes as lists, layer by layer."""
    changes = update(recipe, as_states(layers, dtype), 1, torch.Generator().manual_seed(seed))
    assert list(changes) == [f"{i}.weight" for i in range(len(layers))]
    return [(change.drop.tolist(), change.grow.tolist()) for change in changes.values()]


def positions(mask):
    return set(np.flatnonzero(mask).tolist())


@each_method
@given(layers=networks(), rate=FRACTIONS, dtype=st.sampled_from(DTYPES))
def test_update_keeps_its_invariants(method, layers, rate, dtype):
    recipe = returning_anew(method.recipe(), rate)
    rounded = math.ceil if recipe.rounding == "up" else math.floor
    rates = recipe.rates(as_states(layers, dtype), rate).values() if recipe.rates else [rate] * len(layers)
    changes = carry_out(recipe, layers, dtype=dtype)
    for layer, own, (drop, grow) in zip(layers, rates, changes, strict=True):
        active = positions(layer.active)
        assert drop == sorted(set(drop))
        assert grow == sorted(set(grow))
        assert set(drop) <= active
        assert set(grow) <= positions(layer.candidate) | set(drop)
        assert not set(grow) & (active - set(drop))
        if recipe.drops is None and recipe.rewire is None:
            assert len(drop) == rounded(own * (len(active) // layer.size)) * layer.size
        for unit in layer.units():
            assert len(set(unit) & set(drop)) in (0, layer.size)
            assert len(set(unit) & set(grow)) in (0, layer.size)
        if method.keeps_layers:
            assert len(grow) == len(drop)
    assert sum(len(drop) for drop, _ in changes) == sum(len(grow) for _, grow in changes)


def ranked(layer, units, values):
    """Return the mean magnitude of each unit and its number, as pairs that sort as units do."""
    numbers = {tuple(unit): number for number, unit in enumerate(layer.units())}
    return [(abs(values[unit]).mean(), numbers[tuple(unit)]) for unit in units]


@pytest.mark.parametrize("name", ["rigl", "sparse-momentum"])
@given(layers=networks(), rate=FRACTIONS)
def test_ties_in_the_drop_fall_to_the_lower_unit(name, layers, rate):
    for layer, (drop, _) in zip(layers, carry_out(returning_anew(row(name).recipe(), rate), layers), strict=True):
        active = [unit for unit in layer.units() if layer.active[unit].all()]
        left, stayed = (
            ranked(layer, [unit for unit in active if (unit[0] in drop) is leaves], layer.weight)
            for leaves in (True, False)
        )
        assert not left or not stayed or max(left) < min(stayed)


@pytest.mark.parametrize(("name", "score"), [("rigl", "grad"), ("sparse-momentum", "momentum")])
@given(layers=networks(), rate=FRACTIONS)
def test_ties_in_the_growth_fall_to_the_lower_unit(name, score, layers, rate):
    for layer, (drop, grow) in zip(layers, carry_out(returning_anew(row(name).recipe(), rate), layers), strict=True):
        growable = reference.growable(layer, drop)
        joined, stayed = (
            [(-mean, number) for mean, number in ranked(layer, units, getattr(layer, score))]
            for units in ([u for u in growable if u[0] in grow], [u for u in growable if u[0] not in grow])
        )
        assert not joined or not stayed or max(joined) < min(stayed)


@each_method_with_reference
@given(layers=networks(), rate=FRACTIONS, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32))
def test_update_does_what_the_reference_does(method, layers, rate, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    rate = 0.0 if method.name == "static" else rate
    expected = reference.UPDATES[method.name](
        layers, rate, lambda count: torch.rand(count, generator=generator, dtype=torch.float64).numpy()
    )
    assert carry_out(with_rate(method.recipe(), rate), layers, seed, dtype) == expected


@each_method
@given(layers=networks(), rate=FRACTIONS, seed=st.integers(0, 99))
def test_update_is_pure_and_deterministic(method, layers, rate, seed):
    recipe, states = with_rate(method.recipe(), rate), as_states(layers)
    before = copy.deepcopy(states)
    torch.manual_seed(seed)  # the global generator has no say
    globally = torch.get_rng_state()
    first = update(recipe, states, 1, torch.Generator().manual_seed(7))
    assert torch.equal(torch.get_rng_state(), globally)
    for name, state in states.items():
        for mine, others in ((state.active, before[name].active), (state.candidates, before[name].candidates)):
            for field in ("index", "weight", "grad", "momentum"):
                assert torch.equal(getattr(mine, field), getattr(others, field))
    second = update(recipe, states, 1, torch.Generator().manual_seed(7))
    for name in first:
        assert torch.equal(first[name].drop, second[name].drop)
        assert torch.equal(first[name].grow, second[name].grow)


@each_method
@given(layers=networks(kinds=(CANDIDATE, ACTIVE)), rate=FRACTIONS, density=FRACTIONS)
def test_a_scheduled_density_is_met_as_whole_units_can_growing_and_shrinking(method, layers, rate, density):
    recipe = dataclasses.replace(with_rate(method.recipe(), rate), density=regrow.schedule.constant(density))
    changes = carry_out(recipe, layers)
    after = []
    for layer, (drop, grow) in zip(layers, changes, strict=True):
        left = positions(layer.active) - set(drop)
        assert set(drop) <= positions(layer.active)
        assert not left & set(grow)
        after.append(len(left | set(grow)))
    wanted = round(density * sum(len(layer.weight) for layer in layers))
    numel, sizes = [len(layer.weight) for layer in layers], [layer.size for layer in layers]
    assert sum(after) == reference.nearest_below(wanted, numel, sizes)


@each_method
@pytest.mark.parametrize("kind", [CANDIDATE, ACTIVE], ids=["empty", "full"])
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_empty_and_full_layers_take_part(method, kind, rate):
    ones = np.ones(4)
    extreme = reference.Layer(ones * (kind == ACTIVE), ones * kind == ACTIVE, ones * kind == CANDIDATE, ones, ones)
    half = np.array([True, True, False, False])
    ordinary = reference.Layer(ones * half, half, ~half, ones, ones)
    for layers in ([extreme], [extreme, ordinary], [ordinary, extreme]):
        changes = carry_out(with_rate(method.recipe(), rate), layers)
        assert sum(len(drop) for drop, _ in changes) == sum(len(grow) for _, grow in changes)


def layer(weight, candidates, **fields):
    """Return a state with `weight` at its first positions and candidates after them; fields run over both."""
    active, absent = torch.arange(len(weight)), torch.arange(len(weight), len(weight) + candidates)
    both = {name: torch.tensor(values) for name, values in fields.items()}
    return LayerState(
        Entries(active, torch.tensor(weight), **{name: values[active] for name, values in both.items()}),
        Entries(absent, torch.zeros(candidates), **{name: values[absent] for name, values in both.items()}),
        len(weight) + candidates,
        (len(weight) + candidates,),
    )


def test_a_weight_just_dropped_may_come_back():
    state = layer([0.1, 2.0], 2, momentum=[9.0, 1.0, 3.0, 4.0])
    recipe = row("sparse-momentum").recipe()
    change = update(returning_anew(recipe, 0.5), {"a": state}, 1, torch.Generator())["a"]
    assert (change.drop.tolist(), change.grow.tolist(), change.returned) == ([0], [0], 1)
    change = update(with_rate(recipe, 0.5), {"a": state}, 1, torch.Generator())["a"]
    assert (change.drop.tolist(), change.grow.tolist(), change.returned) == ([], [], 1)


def test_the_pool_moves_to_the_layer_of_larger_mean_momentum_before_the_drop():
    # Means before the drop 4 : 2; after it, over the weights that stay, they would be 1 : 3.
    states = {
        "a": layer([0.1, 1.0], 6, momentum=[7.0, 1.0] + [0.0] * 6),
        "b": layer([1.0, 0.1, 1.0, 0.1], 6, momentum=[3.0, 1.0] * 2 + [0.0] * 6),
    }
    changes = update(returning_anew(row("sparse-momentum").recipe(), 0.5), states, 1, torch.Generator())
    assert {name: len(change.grow) for name, change in changes.items()} == {"a": 2, "b": 1}


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_among_many_fall_to_the_lower_index(dtype):
    numel, zeros = 100_000, torch.zeros(100_000, dtype=dtype)
    index = torch.arange(numel)
    active, absent = index[::2].clone(), index[1::2].clone()
    state = LayerState(
        Entries(active, zeros[active], momentum=zeros[active]),
        Entries(absent, zeros[absent], momentum=zeros[absent]),
        numel,
        (numel,),
    )
    recipe = returning_anew(row("sparse-momentum").recipe(), 0.1)
    change = update(recipe, {"a": state}, 1, torch.Generator())["a"]
    assert torch.equal(change.drop, active[:5000])
    assert torch.equal(change.grow, index[: len(change.grow)])  # the dropped lie among the absent: they come back


@pytest.mark.parametrize("method", [row for row in METHODS if row.due], ids=lambda row: row.name)
def test_every_layer_draws_its_own_noise_and_a_new_seed_new_noise(method):
    half = np.arange(40) % 2 == 0
    layers = [reference.Layer(np.where(half, 1.0, 0), half, ~half, np.ones(40), np.ones(40)) for _ in range(2)]
    runs = [carry_out(with_rate(method.recipe(), 0.5), layers, seed) for seed in (0, 1)]
    is_random = method.recipe().grow is regrow.score.random or method.name == "chts"
    assert (runs[0] != runs[1]) is is_random
    # a ranking over both layers breaks the ties of equal layers by their order
    assert (runs[0][0] != runs[0][1]) is (is_random or method.name == "acdc")


def test_a_weight_that_returns_at_once_can_stay_as_it_was():
    index = torch.arange(4)
    momentum = torch.tensor([9.0, 1.0, 1.0, 1.0])  # the smallest weight has the largest momentum: it comes back
    active = regrow.Entries(index, torch.tensor([0.1, 0.2, 3.0, 4.0]), momentum=momentum)
    absent = regrow.Entries(index + 4, torch.zeros(4), momentum=torch.tensor([0.0, 5.0, 0.0, 0.0]))
    layers = {"a": regrow.LayerState(active, absent, 8, (8,))}
    recipe = dataclasses.replace(regrow.sparse_momentum(every=1, steps=2), fraction=lambda step: 0.5)
    for keep, drop, grow in ((False, [0, 1], [0, 5]), (True, [1], [5])):
        keeping = dataclasses.replace(recipe, keep_returning=keep)
        change = regrow.update(keeping, layers, 1, torch.Generator())["a"]
        assert (change.drop.tolist(), change.grow.tolist()) == (drop, grow)
