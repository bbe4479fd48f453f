"""What a recipe finds out about itself, and rates that differ from layer to layer."""

import dataclasses

import pytest
import torch

import reference
import regrow
from cases import method
from regrow import Entries, LayerState, Recipe
from regrow.redistribute import by_mean, keep, spare_full, within, within_rates
from regrow.score import gradient, magnitude, momentum, random


def recipe(drop=magnitude, redistribute=keep, grow=random, **settings):
    settings = {"fraction": regrow.schedule.constant(0.5), "update_at": regrow.schedule.every(1), **settings}
    return Recipe(drop=drop, redistribute=redistribute, grow=grow, **settings)


def by_momentum_of_candidates(layers, dropped, total):
    means = {name: float(layer.candidates.momentum.abs().mean()) for name, layer in layers.items()}
    return regrow.redistribute.apportion(total, means, regrow.redistribute.room_to_grow(layers, dropped))


def rates_by_momentum(layers, rate):
    return {name: min(rate, float(layer.active.momentum.abs().mean())) for name, layer in layers.items()}


@pytest.mark.parametrize(
    ("parts", "needs", "of_absent"),
    [
        ({}, (), ()),
        ({"drop": gradient}, ("gradient",), ()),
        ({"grow": gradient}, ("gradient",), ("gradient",)),
        ({"redistribute": by_mean(momentum)}, ("momentum",), ()),
        ({"redistribute": by_momentum_of_candidates}, ("momentum",), ("momentum",)),
        ({"redistribute": by_mean(momentum), "grow": gradient}, ("gradient", "momentum"), ("gradient",)),
        ({"grow": lambda e: e.momentum * e.grad}, ("gradient", "momentum"), ("gradient", "momentum")),
        ({"grow": lambda e: e.momentum if e.holds_momentum else e.weight}, ("momentum",), ("momentum",)),
        ({"rates": rates_by_momentum}, ("momentum",), ()),
        ({"redistribute": within(2, keep)}, ("cost",), ()),
        ({"rates": within_rates(2, rates_by_momentum)}, ("momentum", "cost"), ()),
        (
            {"redistribute": within(2, by_mean(gradient)), "grow": momentum},
            ("gradient", "momentum", "cost"),
            ("momentum",),
        ),
        ({"grow": gradient, "needs": ("gradient", "cost")}, ("gradient", "cost"), ("gradient",)),
        ({"grow": gradient, "needs": ("momentum",)}, ("momentum",), ("momentum",)),
        ({"grow": gradient, "needs": ()}, (), ()),
    ],
)
def test_needs_are_what_the_parts_read(parts, needs, of_absent):
    made = recipe(**parts)
    assert (tuple(made.needs), tuple(made.needs_of_absent)) == (needs, of_absent)


def test_a_copy_with_other_parts_is_tried_again_but_keeps_what_was_named():
    assert tuple(dataclasses.replace(recipe(grow=gradient), grow=momentum).needs) == ("momentum",)
    named = recipe(grow=gradient, needs=("gradient", "momentum"))
    assert tuple(dataclasses.replace(named, grow=random).needs) == ("gradient", "momentum")


def test_the_trial_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    recipe(grow=lambda e: torch.rand(len(e)))
    assert torch.equal(torch.get_rng_state(), before)


def for_one_network(layers, dropped, total):
    return {"conv1.weight": total if layers["conv1.weight"].active.momentum.any() else 0}


def test_parts_that_cannot_be_tried_want_needs():
    with pytest.raises(ValueError, match=r"failed with KeyError: 'conv1.weight'; name what it reads in `needs`"):
        recipe(redistribute=for_one_network)
    assert recipe(redistribute=for_one_network, needs=("momentum",)).needs == ("momentum",)


def layer(active, numel, size, unit=(1, 1)):
    """Return a layer whose first weights exist, with momentum of one size."""
    index = torch.arange(numel)
    first, rest = index[:active], index[active:]
    return LayerState(
        Entries(first, first + 1.0, momentum=torch.full((active,), size)),
        Entries(rest, torch.zeros(len(rest)), momentum=torch.full((len(rest),), size)),
        numel,
        (numel // unit[1], unit[1]),
        unit,
    )


@pytest.mark.parametrize(("unit", "drops"), [((1, 1), [4, 18, 5, 10]), ((1, 2), [4, 18, 6, 10])])
def test_each_layer_drops_at_its_own_rate(unit, drops):
    layers = {
        "full, large share": layer(36, 40, 5.0, unit),
        "full, small share": layer(36, 40, 1.0, unit),
        "sparse": layer(10, 40, 5.0, unit),
        "no share": layer(20, 40, 0.0, unit),
    }
    # 1 - 36 / 40 rounds to a little below .1
    assert spare_full(momentum)(layers, 0.5) == {
        "full, large share": pytest.approx(0.1), "full, small share": 0.5, "sparse": 0.5, "no share": 0.5
    }  # fmt: skip
    sparing = dataclasses.replace(
        method("sparse-momentum").recipe(), fraction=regrow.schedule.constant(0.5), keep_returning=False
    )
    changes = regrow.update(sparing, layers, 1, torch.Generator())
    assert [len(change.drop) for change in changes.values()] == drops
    assert sum(len(change.grow) for change in changes.values()) == sum(drops)


def test_rates_that_are_all_the_same_change_nothing():
    layers = {"a": layer(10, 40, 5.0), "b": layer(20, 40, 1.0)}
    plain = recipe(grow=momentum, redistribute=by_mean(momentum))
    alike = dataclasses.replace(plain, rates=lambda layers, rate: dict.fromkeys(layers, rate))
    first, second = (regrow.update(one, layers, 1, torch.Generator()) for one in (plain, alike))
    for name in layers:
        assert torch.equal(first[name].drop, second[name].drop)
        assert torch.equal(first[name].grow, second[name].grow)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (lambda layers, rate: {"a": 0.5}, "rates named 'a', but the layers are"),
        (lambda layers, rate: {}, "rates named no layer"),
        (lambda layers, rate: dict.fromkeys(layers, 1.5), r"rate of '\w.*' at step 1 is 1.5: it must lie in \[0, 1\]"),
        (lambda layers, rate: dict.fromkeys(layers, float("nan")), "at step 1 is nan"),
    ],
)
def test_rates_that_cannot_be_are_an_error(rates, message):
    layers = {"a": layer(10, 40, 5.0), "b": layer(20, 40, 1.0)}
    with pytest.raises(ValueError, match=message):
        regrow.update(recipe(rates=rates), layers, 1, torch.Generator())


def test_a_redistribution_must_hand_out_whole_units():
    layers = {name: layer(20, 40, 1.0, (1, 4)) for name in "ab"}
    uneven = recipe(redistribute=lambda layers, dropped, total: {"a": total - 2, "b": 2}, needs=())
    with pytest.raises(ValueError, match=r"gave \d+ weights to 'a', no whole units of 4 weights: give multiples of"):
        regrow.update(uneven, layers, 1, torch.Generator())


@pytest.mark.parametrize(("field", "kind"), [("active", "active weights"), ("candidates", "candidates")])
def test_a_layer_with_part_of_a_unit_is_an_error(field, kind):
    broken = dataclasses.replace(layer(20, 40, 1.0, (1, 4)), **{field: Entries(torch.arange(18), torch.ones(18))})
    with pytest.raises(ValueError, match=f"'a' has 18 {kind}, which are no whole units of 4 weights"):
        regrow.update(recipe(), {"a": broken}, 1, torch.Generator())


def test_the_mean_over_a_unit_decides_whatever_the_largest_of_its_weights():
    weight = torch.tensor([9.0, 0.1, 0.1, 0.1, 3.0, 3.0, 3.0, 3.0])
    state = LayerState(
        Entries(torch.arange(8), weight), Entries(torch.arange(8, 16), torch.zeros(8)), 16, (4, 4), (1, 4)
    )
    assert reference.units_of((4, 4), (1, 4))[0] == [0, 1, 2, 3]
    change = regrow.update(recipe(), {"a": state}, 1, torch.Generator())["a"]
    assert change.drop.tolist() == [0, 1, 2, 3]
