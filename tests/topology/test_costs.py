"""The cost of weights as updates see it, and updates within a budget of multiply-adds."""

import copy
import dataclasses
import gc

import pytest
import torch
from torch import nn

import regrow
from cases import STORED, Run, assert_same, each_storage, model, optimization

EVERY = 3


class Narrowing(nn.Module):
    """A convolution on a large plane, one on a small plane, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.early, self.late = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        nn.init.uniform_(self.early.weight, -0.002, 0.002)  # beside its gradient, those of the others are small

    def forward(self, x):
        x = nn.functional.max_pool2d(self.early(x).relu(), 4)
        return self.head(self.late(x).relu().mean((2, 3)))


class Training:
    def __init__(self, compute, storage, *, network=None, compiled=False, seed=0, **settings):
        torch.manual_seed(seed)
        self.model = regrow.sparsify(network or Narrowing(), 0.3, backend=storage)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        recipe = regrow.sparse_momentum(every=EVERY, steps=300, compute=compute)
        self.topology = regrow.TopologyUpdater(self.model, self.optimizer, dataclasses.replace(recipe, **settings))
        self.forward = torch.compile(self.model, fullgraph=True, backend="aot_eager") if compiled else self.model

    def step(self, seed, shape=(5, 4, 16, 16)):
        self.optimizer.zero_grad()
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        self.forward(x).square().mean().backward()
        self.optimizer.step()

    def train(self, seeds):
        for seed in seeds:
            self.step(seed)
        return self

    def state(self):
        parts = {"model": self.model, "optimizer": self.optimizer, "topology": self.topology}
        return copy.deepcopy({name: part.state_dict() for name, part in parts.items()})

    def times_uniform(self, shape=(1, 4, 16, 16)):
        rows = regrow.summary(self.model, torch.zeros(shape)).layers
        uniform = sum(row.flops / row.density for row in rows) * sum(row.nonzeros for row in rows)
        return sum(row.flops for row in rows) * sum(row.nonzeros / row.density for row in rows) / uniform


@each_storage
def test_a_bound_on_compute_holds_after_every_update(storage):
    free, bounded = (Training(compute, storage).train(range(3 * EVERY + 2)) for compute in (None, 1.1))
    assert free.times_uniform() > 1.2
    assert bounded.times_uniform() <= 1.1 + 1e-6
    assert sum(mask.sum() for mask in regrow.masks(free.model).values()) == sum(
        mask.sum() for mask in regrow.masks(bounded.model).values()
    )


def test_both_storages_go_the_same_way():
    growth = regrow.growth.exact()
    masked, sparse = (Training(1.1, storage, growth=growth).train(range(11)) for storage in ("masked", "cpu"))
    assert_same(regrow.masks(masked.model), regrow.masks(sparse.model))


@each_storage
def test_updates_see_the_mean_cost_over_the_samples_of_training(storage):
    seen = []

    def note(layers, dropped, total):
        seen.append([layer.cost for layer in layers.values()])
        return regrow.redistribute.keep(layers, dropped, total)

    training = Training(None, storage, redistribute=note)
    seen.clear()
    for seed, shape in enumerate([(5, 4, 16, 16), (5, 4, 8, 8), (10, 4, 8, 16), (2, 4, 32, 8)]):
        training.step(seed, shape)
        training.model.eval()
        with torch.no_grad():
            training.model(torch.zeros(100, 4, 32, 32))
        training.model.train()
    early = (5 * 256 + 5 * 64 + 10 * 128 + 2 * 256) / 22
    assert seen == [[early, pytest.approx(early / 16), 1]]


@each_storage
def test_a_training_that_goes_on_is_the_same(storage):
    whole = Training(1.1, storage)
    whole.train(range(EVERY))
    saved = whole.state()
    whole.train(range(EVERY, 4 * EVERY))
    other = Training(1.1, storage, seed=1)
    for part, state in saved.items():
        getattr(other, part).load_state_dict(state)
    # the first step carries out an update, and has seen no pass of its own model yet but one
    other.train(range(EVERY, 4 * EVERY))
    assert_same(regrow.masks(other.model), regrow.masks(whole.model))
    assert other.state()["topology"]["uses"] == whole.state()["topology"]["uses"]


def test_states_load_with_and_without_a_bound():
    free, bounded = (Training(compute, "masked").train(range(2)) for compute in (None, 2))
    assert free.state()["topology"]["uses"] is None
    for one, other in ((free, bounded), (bounded, free)):
        one.topology.load_state_dict(other.state()["topology"])
    assert bounded.topology.state_dict()["uses"]["samples"] == 10


@each_storage
def test_a_compiled_training_counts_in_its_graph_and_breaks_nowhere(storage):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(force_parameter_static_shapes=False, force_nn_module_property_static_shapes=False):
        plain, compiled = (Training(1.1, storage, compiled=compiled).train(range(8)) for compiled in (False, True))
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6
    assert compiled.state()["topology"]["uses"] == plain.state()["topology"]["uses"]
    assert_same(regrow.masks(compiled.model), regrow.masks(plain.model))
    torch._dynamo.reset()


def test_a_model_that_is_watched_can_be_exported():
    training = Training(1.1, "masked").train(range(1))
    x = torch.zeros(2, 4, 16, 16)
    expected = training.model(x)
    torch.testing.assert_close(torch.export.export(training.model, (x,)).module()(x), expected)


@pytest.mark.parametrize(("model", "storage"), STORED, ids=lambda row: getattr(row, "name", row))
def test_every_kind_of_layer_trains_within_a_bound(model, storage):
    recipe = regrow.sparse_momentum(every=2, steps=8, compute=1)
    run = Run(model, recipe, optimization("sgd-momentum"), storage=storage)
    before = sum(int(mask.sum()) for mask in regrow.masks(run.model).values())
    table = regrow.summary(run.train(range(8)).model, model.inputs(0))
    assert table.nonzeros == before
    whole = sum(row.flops / row.density for row in table.layers)
    # counts at the start are whole numbers too, so one spread evenly may be a little off
    assert table.flops <= whole * table.density + 2 * max(row.flops / row.nonzeros for row in table.layers)


def test_frozen_layers_have_no_part_in_the_bound():
    training = Training(1.0, "masked")
    training.model.early.weight.requires_grad_(False)
    before = int(training.model.early.weight_mask.sum())
    training.train(range(8))
    assert int(training.model.early.weight_mask.sum()) == before


def test_updates_without_a_pass_say_what_is_missing():
    training = Training(2, "masked")
    for parameter in training.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    training.optimizer.step()
    with pytest.raises(ValueError, match=r"'early.weight' is not known.*run some before the update"):
        training.topology.update()


def test_an_updater_that_leaves_takes_its_hooks_along():
    for leave in (lambda training: training.topology.remove(), lambda training: training.__dict__.clear()):
        training = Training(2, "masked", network=(network := Narrowing()))
        assert network._forward_pre_hooks
        leave(training)
        gc.collect()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_the_mlp_is_not_changed_by_a_bound_as_all_its_weights_cost_the_same():
    runs = [
        Run(model("mlp"), regrow.sparse_momentum(every=2, steps=8, compute=compute), optimization("sgd-momentum"))
        for compute in (None, 1.0)
    ]
    assert_same(*(regrow.masks(run.train(range(8)).model) for run in runs))
