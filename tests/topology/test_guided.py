"""Guided growth: candidates are drawn by the activity of outputs and inputs, and a run goes on to the bit."""

import dataclasses
from itertools import product

import pytest
import torch
from torch import nn

import regrow
from cases import Run, assert_same, each_storage, method, model, optimization
from regrow.core.growth import wanted
from regrow.core.positions import draw_pairs
from regrow.core.units import Units
from regrow.growth import candidates, guided
from regrow.storage import sparse_weights
from regrow.topology.activity import Activity

SGD = optimization("sgd-nesterov")


@pytest.mark.parametrize("count", [1, 7, 20, 39, 40, 200])
def test_pairs_are_absent_distinct_sorted_and_as_many_as_wanted(count):
    index = torch.tensor([0, 3, 4, 17, 30, 31, 40, 41, 46, 47])
    generator = torch.Generator().manual_seed(count)
    drawn = draw_pairs(index, torch.rand(5), torch.rand(10), count, generator)
    assert drawn.tolist() == sorted(set(drawn.tolist()) - set(index.tolist()))
    assert len(drawn) == min(count, 40)
    assert 0 <= int(drawn[0]) <= int(drawn[-1]) < 50


def test_pairs_come_in_proportion_to_both_weights():
    rows, columns = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0, 0.0])
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(6)
    for _ in range(2000):
        counts[draw_pairs(torch.tensor([0]), rows, columns, 1, generator)] += 1
    expected = torch.tensor([r * c for r, c in product((1, 3), (2, 1, 0))], dtype=torch.float32)
    expected[0] = 0
    assert (counts / 2000 - expected / expected.sum()).abs().max() < 0.04


def test_what_has_no_weight_is_drawn_last():
    rows, columns = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    drawn = draw_pairs(torch.tensor([4]), rows, columns, 5, torch.Generator().manual_seed(0)).tolist()
    assert 7 in drawn
    assert len(set(drawn)) == 5


@each_storage
@pytest.mark.parametrize("name", ["mlp", "conv1d", "conv2d", "grouped"])
def test_activity_bounds_the_gradient(name, storage):
    run = Run(model(name), method("rigl").recipe(), SGD, storage=storage, density=1.0)
    watched = {weight.name: Activity(weight) for weight in sparse_weights(run.model).values()}
    for activity in watched.values():
        activity.begin()
    run.model.train()
    run.loss(0).backward()
    for key, weight in sparse_weights(run.model).items():
        outputs, inputs = watched[key].end()
        gradient = weight.everywhere(weight.weight.grad) if storage == "masked" else weight.weight.grad
        groups = 4 if name == "grouped" and key == "2.weight" else 1
        bound = outputs[:, None] * inputs * groups
        largest = gradient.view(weight.shape[0], weight.shape[1], -1).abs().amax(2)
        assert (largest <= bound + 1e-6).all()
        assert outputs.any()
        assert watched[key].end() is None


def test_activity_is_none_where_nothing_is_known(monkeypatch):
    attention = Run(model("attention"), method("rigl").recipe(), SGD)
    activities = [Activity(weight) for weight in sparse_weights(attention.model).values()]
    for activity in activities:
        activity.begin()
    attention.loss(0).backward()
    assert [activity.end() for activity in activities] == [None, None]
    mlp = Run(model("mlp"), method("rigl").recipe(), SGD)
    activity = Activity(next(iter(sparse_weights(mlp.model).values())))
    activity.begin()
    with torch.no_grad():
        mlp.model(mlp.case.inputs(0))
    assert activity.end() is None
    activity.begin()
    with monkeypatch.context() as compiling:
        compiling.setattr(torch.compiler, "is_compiling", lambda: True)
        mlp.loss(0).backward()
    assert activity.end() is None


@pytest.mark.parametrize("unit", [(1, 1), (2, 1), (2, 3)])
def test_units_are_drawn_by_the_activity_of_their_outputs_and_inputs(unit):
    units, outputs, inputs = Units((4, 6, 2), unit), torch.zeros(4), torch.zeros(6)
    outputs[2], inputs[4] = 1.0, 1.0
    drawn = wanted(guided(1, 0.1), torch.empty(0, dtype=torch.int64), units, torch.Generator(), (outputs, inputs))
    assert len(drawn) == 1
    index = units.positions_of(drawn)
    assert {2} <= set((index // 12).tolist())
    assert {4} <= set((index // 2 % 6).tolist())
    even = wanted(guided(1, 1.0), index.sort().values, units, torch.Generator())
    assert_same(even, wanted(candidates(1, 1.0), index.sort().values, units, torch.Generator()))


@each_storage
@pytest.mark.parametrize("name", ["rigl", "sparse-momentum", "gse"])
@pytest.mark.parametrize("at", range(1, 9))
def test_a_resumed_training_goes_on_to_the_bit(name, at, storage):
    def start(seed):
        recipe = dataclasses.replace(method(name).factory(every=4, steps=12), growth=guided(2, per_nonzero=0.5))
        return Run(model("mlp"), recipe, SGD, storage=storage, seed=seed)

    whole, first = start(0).train(range(10)), start(0).train(range(at))
    second = start(77)
    for part, state in first.state().items():
        {"model": second.model, "optimizer": second.optimizer, "topology": second.topology}[part].load_state_dict(state)
    second.train(range(at, 10))
    assert_same(second.state(), whole.state())


def test_it_finds_more_of_what_exact_growth_grows_than_an_even_draw():
    """Few inputs and outputs are active: nearly all that is worth growing lies among them."""
    found = {}
    for source in (guided, candidates):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(100, 80, bias=False))
        regrow.sparsify(net, 0.02, backend="masked")
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
        recipe = dataclasses.replace(regrow.rigl(every=5, steps=100, prune_rate=0.9), growth=source(1, per_nonzero=1))
        grown = []
        regrow.TopologyUpdater(net, optimizer, recipe, on_update=lambda _, c: grown.append(c["0.weight"].grow))  # noqa: B023
        for _ in range(30):
            optimizer.zero_grad()
            x = torch.randn(16, 100) * (torch.arange(100) < 10)
            (net(x)[:, :8] - 1).square().sum().backward()
            optimizer.step()
        at = torch.cat(grown)
        found[source] = float(((at % 100 < 10) & (at // 100 < 8)).float().mean())
    assert found[guided] > 0.3 > 0.1 > found[candidates]


@pytest.mark.parametrize("every", [1, 2])
def test_nothing_is_left_watched_and_frozen_layers_are_not(every):
    recipe = dataclasses.replace(regrow.rigl(every=every, steps=8), growth=guided(3, per_nonzero=1))
    run = Run(model("mlp"), recipe, SGD, storage="cpu").train(range(12))
    assert not any(module._forward_hooks for module in run.model.modules())
    run = Run(model("mlp"), recipe, SGD, storage="cpu")
    run.model[0].requires_grad_(False)
    run.train(range(4))
    assert not run.model[0]._forward_hooks
