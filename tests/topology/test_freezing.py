"""Layers that are frozen and unfrozen while an updater keeps the topology, in both storages."""

import copy
import dataclasses

import pytest
import torch

import regrow
from cases import Run, assert_same, each_storage, model, optimization, weights

FIRST, LAST = "0.weight", "3.weight"
GROWTHS = [regrow.growth.exact(), regrow.growth.window(2), regrow.growth.candidates(2, 2)]
each_growth = pytest.mark.parametrize("growth", GROWTHS, ids=["exact", "window", "candidates"])
each_optimizer = pytest.mark.parametrize("optimizer", ["sgd-momentum", "adam"])


def first_weight(run):
    """Return the parameter of the first layer, in whatever storage."""
    return next(run.model[0].parameters())


def started(growth, storage, optimizer="sgd-momentum", *, frozen=False, dtype=torch.float32, **settings):
    """Return a run of sparse momentum with an update every two steps."""
    recipe = dataclasses.replace(regrow.sparse_momentum(every=2, steps=20), growth=growth)

    def prepare(network):
        next(network[0].parameters()).requires_grad_(not frozen)
        return network.to(dtype)

    return Run(model("mlp"), recipe, optimization(optimizer), storage=storage, prepare=prepare, **settings)


def assert_absent_are_zero(run):
    masks = regrow.masks(run.model)
    for name, weight in weights(run.model).items():
        assert not weight[~masks[name]].any(), name


@each_growth
@each_storage
@each_optimizer
def test_a_layer_unfrozen_later_stays_sparse_and_takes_part(growth, storage, optimizer):
    run = started(growth, storage, optimizer, frozen=True)
    before = regrow.masks(run.model)
    run.train(range(3))
    assert torch.equal(regrow.masks(run.model)[FIRST], before[FIRST])
    first_weight(run).requires_grad_(True)
    for seed in range(3, 12):
        run.step(seed)
        assert_absent_are_zero(run)
    assert not torch.equal(regrow.masks(run.model)[FIRST], before[FIRST])
    assert sum(int(mask.sum()) for mask in regrow.masks(run.model).values()) == sum(
        int(mask.sum()) for mask in before.values()
    )


@each_growth
@each_storage
@each_optimizer
def test_a_layer_frozen_later_keeps_positions_and_values(growth, storage, optimizer):
    run = started(growth, storage, optimizer).train(range(3))
    run.optimizer.zero_grad()
    first_weight(run).requires_grad_(False)
    mask, values = regrow.masks(run.model)[FIRST], weights_as_dense(run)
    others = regrow.masks(run.model)[LAST]
    run.train(range(3, 11))
    assert torch.equal(regrow.masks(run.model)[FIRST], mask)
    assert torch.equal(weights_as_dense(run), values)
    assert not torch.equal(regrow.masks(run.model)[LAST], others)


def weights_as_dense(run):
    return regrow.dense_state_dict(run.model)[FIRST].clone()


@each_growth
@pytest.mark.parametrize("changes", [{2: False, 7: True}, {0: False, 3: True, 6: False, 9: True}], ids=str)
def test_both_storages_agree_on_frozen_layers(growth, changes):
    # In float64, so that rounding decides no tie.
    runs = [started(growth, storage, dtype=torch.float64) for storage in ("masked", "cpu")]
    for seed in range(14):
        for run in runs:
            if seed in changes:
                run.optimizer.zero_grad()
                first_weight(run).requires_grad_(changes[seed])
            run.step(seed)
        assert_same(*(regrow.masks(run.model) for run in runs))
    torch.testing.assert_close(*(regrow.dense_state_dict(run.model) for run in runs))


@each_growth
@each_storage
def test_a_layer_unfrozen_just_before_an_update_waits_for_the_next(growth, storage):
    run = started(growth, storage, frozen=True).train(range(3))
    before = regrow.masks(run.model)[FIRST]
    first_weight(run).requires_grad_(True)
    run.step(3)
    assert torch.equal(regrow.masks(run.model)[FIRST], before)
    run.train([4, 5])
    assert not torch.equal(regrow.masks(run.model)[FIRST], before)


@each_storage
def test_a_frozen_layer_may_join_the_optimizer_later(storage):
    torch.manual_seed(0)
    network = regrow.sparsify(model("mlp").build(), 0.3, backend=storage)
    next(network[0].parameters()).requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    regrow.TopologyUpdater(network, optimizer, regrow.set(every=2, steps=20))
    before = regrow.masks(network)
    for seed in range(10):
        if seed == 3:
            next(network[0].parameters()).requires_grad_(True)
            optimizer.add_param_group({"params": [next(network[0].parameters())]})
        optimizer.zero_grad()
        network(model("mlp").inputs(seed)).square().mean().backward()
        optimizer.step()
    after = regrow.masks(network)
    assert not torch.equal(after[FIRST], before[FIRST])
    assert all(not weight[~after[name]].any() for name, weight in weights(network).items())


@each_storage
def test_all_layers_may_be_frozen(storage):
    run = started(regrow.growth.exact(), storage)
    before = regrow.masks(run.model)
    for layer in (0, 3):
        next(run.model[layer].parameters()).requires_grad_(False)
    run.train(range(6))
    assert_same(regrow.masks(run.model), before)
    assert run.topology.step == 6


@each_growth
@each_storage
def test_a_training_resumed_with_a_frozen_layer_equals_the_uninterrupted(growth, storage):
    run = started(growth, storage, frozen=True).train(range(3))
    state = copy.deepcopy(run.state())
    resumed = started(growth, storage, frozen=True, seed=1)
    for name in ("model", "optimizer", "topology"):
        getattr(resumed, name).load_state_dict(state[name])
    for each in (run, resumed):
        first_weight(each).requires_grad_(True)
        each.train(range(3, 10))
    assert_same(resumed.state(), run.state())
