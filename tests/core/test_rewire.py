"""Rewiring: constant fan-in and ablated outputs, draws by topology, and what a rewiring may not return."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_update import FRACTIONS, as_states, carry_out, networks
from torch import nn

import reference
import regrow
from cases import each_storage, method
from regrow.methods.chts import _drawn, _paths
from regrow.score import by_largest, constant_fan_in, gradient, magnitude


def rate_of(recipe, rate, **changes):
    return dataclasses.replace(recipe, fraction=regrow.schedule.constant(rate), **changes)


def fan_ins(layer, drop, grow):
    """Return how many units each output has after a change."""
    after = (set(np.flatnonzero(layer.active).tolist()) - set(drop)) | set(grow)
    return [sum(unit[0] in after for unit in row) for row in reference.rows_of(layer)]


@given(layers=networks(kinds=(1, 2)), rate=FRACTIONS, part=st.sampled_from([None, 0.0, 0.3, 0.95, 1.0]))
def test_outputs_differ_by_one_weight_at_most_or_have_none(layers, rate, part):
    recipe = rate_of(method("srigl").recipe(), rate, rewire=constant_fan_in(part))
    changes = carry_out(recipe, layers)
    for number, (layer, (drop, grow)) in enumerate(zip(layers, changes, strict=True)):
        counts = fan_ins(layer, drop, grow)
        assert sum(counts) * layer.size == layer.active.sum()
        there = [count for count in counts if count]
        assert not there or max(there) - min(there) <= 1
        if part is None or number == len(layers) - 1:
            assert max(counts) - min(counts) <= 1


def test_an_output_of_few_salient_weights_is_ablated_and_comes_back():
    """Rows of four: the third has the smallest weights, and no gradient until the second update."""
    weight = np.array([[5.0, 6, 0, 0], [7, 8, 0, 0], [1, 2, 0, 0]]).ravel()
    grad = np.array([[0.0, 0, 3, 1], [0, 0, 4, 2], [0, 0, 0, 0]]).ravel()
    active = weight != 0
    layer = reference.Layer(weight, active, ~active, grad, grad, (3, 4))
    recipe = rate_of(method("srigl").recipe(), 0.5, rewire=constant_fan_in(1.0))
    (drop, grow), _ = carry_out(recipe, [layer, layer])
    assert (drop, grow) == ([0, 8, 9], [2, 3, 6])  # the first had lost its smallest to a drop over the layer
    active = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]).ravel().astype(bool)
    grad = np.array([[0.0, 0, 0, 0], [0, 0, 0, 0], [9, 8, 7, 6]]).ravel()
    layer = reference.Layer(np.where(active, 1.0, 0), active, ~active, grad, grad, (3, 4))
    (drop, grow), _ = carry_out(recipe, [layer, layer])
    assert fan_ins(layer, drop, grow) == [0, 3, 3]
    assert grow == [8, 9, 10]


@each_storage
def test_a_training_has_constant_fan_in_from_the_first_update_on(storage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 10))
    regrow.sparsify(model, 0.2, backend=storage)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    regrow.TopologyUpdater(model, optimizer, regrow.srigl(every=4, steps=20))
    for step in range(1, 21):
        optimizer.zero_grad()
        model(torch.randn(8, 40)).square().mean().backward()
        optimizer.step()
        for name, mask in regrow.masks(model).items():
            counts = mask.sum(dim=1)
            if step > 4:
                assert counts[counts > 0].max() - counts[counts > 0].min() <= 1
            if step > 4 and name == "2.weight":
                assert counts.min() > 0


def test_constant_fan_in_takes_any_scores_and_blocks():
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(16, 12)), 0.25, block=(2, 1), backend="masked")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    recipe = dataclasses.replace(regrow.sparse_momentum(every=2, steps=20), rewire=constant_fan_in())
    regrow.TopologyUpdater(model, optimizer, recipe)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
    assert set(regrow.masks(model)["0.weight"].sum(dim=1).tolist()) == {4}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (([1, 0], [0, 1]), "to leave that are not among the 2"),
        (([0], [2]), "to join that are not among the 2"),
        (([0], [0, 1]), "lets 1 units of 'a' leave and 2 join"),
    ],
)
def test_a_rewiring_that_cannot_be_carried_out_is_refused(returned, message):
    half = np.array([True, True, False, False])
    layer = reference.Layer(half * 1.0, half, ~half, half * 1.0, half * 1.0)
    recipe = rate_of(method("rigl").recipe(), 0.5)
    recipe = dataclasses.replace(recipe, needs=(), rewire=lambda *_: tuple(map(torch.tensor, returned)))
    with pytest.raises(ValueError, match=message):
        regrow.update(recipe, {"a": as_states([layer])["0.weight"]}, 1, torch.Generator())
    with pytest.raises(ValueError, match="pick and rewire both"):
        dataclasses.replace(recipe, pick=regrow.score.per_output)
    with pytest.raises(ValueError, match="ablate_below is 2"):
        constant_fan_in(2)


@pytest.mark.parametrize("rule", ["ch2", "ch3"])
@given(layers=networks(kinds=(1, 2)))
def test_the_score_of_a_link_is_the_sum_over_nodes_on_its_paths(rule, layers):
    for layer in layers:
        rows = reference.rows_of(layer)
        graph = torch.tensor([[float(layer.active[unit[0]]) for unit in row] for row in rows])
        kept = [unit for row in rows for unit in row if layer.active[unit[0]]]
        absent = [unit for row in rows for unit in row if not layer.active[unit[0]]]
        found = (_paths(graph, rule) + _paths(graph.T, rule).T)[graph == 0]
        assert found.tolist() == pytest.approx(reference.l3_scores(layer, kept, absent, rule))


def test_paths_are_counted_in_parts(monkeypatch):
    graph = (torch.rand(30, 20, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    whole = _paths(graph, "ch2")
    monkeypatch.setattr(sys.modules["regrow.methods.chts"], "_AT_ONCE", 60)
    assert torch.equal(_paths(graph, "ch2"), whole)


def test_draws_are_in_proportion_and_zero_comes_last():
    weights = torch.tensor([1.0, 0.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    entries = regrow.Entries(torch.arange(5), weights, generator=generator)
    logarithm = torch.where(weights > 0, weights.log(), -1000.0)
    counts = torch.zeros(5)
    for _ in range(4000):
        counts[_drawn(logarithm, entries, 1, 1)] += 1
    assert counts[1] == 0
    assert torch.allclose(counts / 4000, weights.float() / 10, atol=0.025)
    assert _drawn(logarithm, entries, 4, 1).tolist() == [0, 2, 3, 4]


def test_chts_draws_by_relative_weight_and_takes_other_growth():
    active = np.array([True, True, True, False, False, False])
    weight = np.array([4.0, 4.0, 1e-3, 0, 0, 0])
    grad = np.array([0.0, 0, 0, 1.0, 2.0, 3.0])
    layer = reference.Layer(weight, active, ~active, grad, grad, (3, 2))
    drops = {}
    for relative in (False, True):
        recipe = rate_of(regrow.chts(every=2, steps=2, relative=relative), 1 / 3, needs=("gradient",), grow=gradient)
        runs = [carry_out(recipe, [layer], seed)[0] for seed in range(200)]
        drops[relative] = sum(drop == [2] for drop, _ in runs)
        assert {tuple(grow) for drop, grow in runs if drop == [2]} == {(5,)}
    # alone in its output it counts as much as the others, whatever its size
    assert drops[False] == 200
    assert 60 < drops[True] < 140
    with pytest.raises(ValueError, match="no rule 'ch4'"):
        regrow.chts(every=2, steps=8, rule="ch4")


def test_a_unit_may_count_by_its_largest_weight():
    torch.manual_seed(0)
    weight = np.array([3.0, 1.0, 2.0, 2.5, 0, 0, 0, 0])
    grad = np.array([0.0, 0, 0, 0, 0, 4.0, 3.0, 3.0])
    active = weight != 0
    layer = reference.Layer(weight, active, ~active, grad, grad, (4, 2), (1, 2))
    recipe = rate_of(method("rigl").recipe(), 0.5)
    assert carry_out(recipe, [layer]) == [([0, 1], [6, 7])]
    recipe = dataclasses.replace(recipe, drop=by_largest(magnitude), grow=by_largest(gradient))
    assert carry_out(recipe, [layer]) == [([2, 3], [4, 5])]
