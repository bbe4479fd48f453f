"""DSR beside a run of its adaptive threshold, and its shares worked out by hand."""

import dataclasses

import numpy as np
import pytest
import torch

import regrow


def layer(weight, absent):
    index = torch.arange(len(weight) + absent)
    parts = index[: len(weight)], index[len(weight) :]
    return regrow.LayerState(
        regrow.Entries(parts[0], torch.tensor(weight)),
        regrow.Entries(parts[1], torch.zeros(absent)),
        len(index),
        (len(index),),
    )


def counts(layers, **settings):
    changes = regrow.update(regrow.dsr(every=1, steps=100, **settings), layers, 1, torch.Generator().manual_seed(0))
    return {name: (len(change.drop), len(change.grow)) for name, change in changes.items()}


def test_shares_are_those_of_the_surviving_weights():
    # 0.1 to 0.6 leave: 6 of 16. Survivors 2, 6, 2 of 10: of 6 to grow 1.2, 3.6, 1.2, by largest remainder 1, 4, 1.
    layers = {
        "a": layer([0.1, 0.2, 5.0, 6.0], 20),
        "b": layer([0.3, 0.4, 5.0, 6.0, 7.0, 8.0, 9.0, 9.0], 20),
        "c": layer([0.5, 0.6, 5.0, 6.0], 20),
    }
    assert counts(layers, count=6) == {"a": (2, 1), "b": (2, 4), "c": (2, 1)}


def test_what_a_full_layer_cannot_take_goes_to_the_others():
    layers = {"full": layer([5.0] * 12, 0), "tight": layer([6.0] * 6, 1), "free": layer([0.1, 0.2, 0.3, 9.0], 50)}
    assert counts(layers, count=3) == {"full": (0, 0), "tight": (0, 1), "free": (3, 2)}


def test_a_layer_keeps_its_last_weight_and_nothing_returns_at_once():
    layers = {"small": layer([0.1, 0.2, 0.3], 3), "large": layer([5.0] * 10, 40)}
    change = regrow.update(regrow.dsr(every=1, steps=100, count=3), layers, 1, torch.Generator())
    assert len(change["small"].drop) == 2
    assert not any(each.returned for each in change.values())


def adaptive_threshold(weights, target, updates, threshold=1e-3):
    """Return how many weights each update removes by the paper's rule, over weights that are drawn anew each time."""
    removed = []
    for update in range(updates):
        count = int((np.abs(weights[update]) < threshold).sum())
        removed.append(count)
        threshold *= 2 if count < 0.9 * target else 0.5 if count > 1.1 * target else 1
    return removed


@pytest.mark.parametrize("target", [300, 1000])
def test_the_adaptive_threshold_circles_around_what_is_exact_here(target):
    """Doubling and halving can miss the band of a tenth around K for ever; here K are dropped at every update."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(40, 10_000))
    settled = adaptive_threshold(weights, target, 40)[20:]
    assert all(0.4 * target < count < 2.5 * target for count in settled)
    for update in range(3):
        layers = {"a": layer(weights[update][:4000].tolist(), 9000), "b": layer(weights[update][4000:].tolist(), 9000)}
        dropped, grown = zip(*counts(layers, count=target).values(), strict=True)
        assert sum(dropped) == sum(grown) == target
        threshold = np.sort(np.abs(weights[update]))[target]
        assert dropped[0] == (np.abs(weights[update][:4000]) < threshold).sum()


def test_the_interval_may_widen_as_in_the_paper():

    recipe = dataclasses.replace(regrow.dsr(every=1, steps=100), update_at=regrow.schedule.at({10, 30, 70}))
    assert [step for step in range(100) if recipe.update_at(step)] == [10, 30, 70]
