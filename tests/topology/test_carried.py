"""The state dicts of model and optimizer alone hold the topology; a load that has none of it never goes unseen."""

import io

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import regrow
from cases import (
    STEP_METHODS,
    Run,
    assert_same,
    each_method,
    each_storage,
    method,
    model,
    optimization,
)
from regrow.topology.carried import KEY

MLP, ADAM = model("mlp"), optimization("adamw-foreach")
STEPS, STOP = 8, 3  # at STOP an update is due, and windows of two steps are open
TWO = [["0.*"], ["3.weight"]]


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def run(row, storage="masked", seed=0, growth=None, **settings):
    recipe = row.factory(every=2, steps=STEPS, growth=growth) if growth else row.recipe()
    return Run(MLP, recipe, ADAM, storage=storage, seed=seed, **settings)


def checkpoint(one):
    """What code that knows nothing of topologies saves."""
    return saved_and_loaded({"model": one.model.state_dict(), "optimizer": one.optimizer.state_dict()})


def load(one, saved):
    one.model.load_state_dict(saved["model"])
    one.optimizer.load_state_dict(saved["optimizer"])


@each_storage
@each_method
def test_a_training_resumed_from_model_and_optimizer_alone_equals_the_uninterrupted_to_the_bit(method, storage):
    second, whole = run(method, storage, seed=77), run(method, storage).train(range(STEPS))
    load(second, checkpoint(run(method, storage).train(range(STOP))))
    assert second.topology.step == STOP
    assert_same(second.train(range(STOP, STEPS)).state(), whole.state())


@each_storage
@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("growth", [regrow.growth.window(2), regrow.growth.candidates(2, 1)], ids=str)
def test_a_window_that_is_open_is_carried_too(growth, at, storage):
    row = method("sparse-momentum")
    second = run(row, storage, seed=77, growth=growth)
    load(second, checkpoint(run(row, storage, growth=growth).train(range(at))))
    whole = run(row, storage, growth=growth).train(range(STEPS))
    assert_same(second.train(range(at, STEPS)).state(), whole.state())


@each_storage
@pytest.mark.parametrize("growth", [None, regrow.growth.candidates(2, 1)], ids=["default", "candidates"])
def test_a_training_that_has_ended_goes_on_by_a_longer_recipe(growth, storage):
    def started(steps, seed=0):
        recipe = regrow.sparse_momentum(every=2, steps=steps, growth=growth)
        return Run(MLP, recipe, ADAM, storage=storage, seed=seed)

    first, second = started(4).train(range(4)), started(8, seed=77)
    load(second, checkpoint(first))
    before = regrow.masks(second.model)
    second.train(range(4, 6))
    assert second.topology.step == 6
    assert any(not torch.equal(mask, before[name]) for name, mask in regrow.masks(second.model).items())


@pytest.mark.parametrize("row", STEP_METHODS, ids=lambda row: row.name)
def test_rules_of_every_step_are_carried_too(row):
    def started(seed=0):
        torch.manual_seed(seed)
        network = regrow.sparsify(MLP.build(), row.density, backend="masked", seed=seed)
        optimizer = ADAM.build(network.parameters())
        return network, optimizer, regrow.StepUpdater(network, optimizer, row.rule(), seed=seed)

    def train(network, optimizer, seeds):
        for seed in seeds:
            optimizer.zero_grad()
            (network(MLP.inputs(seed)) - 1).square().mean().backward()
            optimizer.step()

    whole, first, second = started(), started(), started(seed=77)
    train(*whole[:2], range(STEPS))
    train(*first[:2], range(STOP))
    saved = saved_and_loaded([part.state_dict() for part in first[:2]])
    for part, state in zip(second[:2], saved, strict=True):
        part.load_state_dict(state)
    train(*second[:2], range(STOP, STEPS))
    assert_same([part.state_dict() for part in second], [part.state_dict() for part in whole])
    second[2].remove()
    assert KEY not in second[1].state_dict()


@each_storage
@pytest.mark.parametrize("separate", [False, True], ids=["one-optimizer", "two-optimizers"])
def test_two_updaters_each_take_their_own_state(separate, storage):
    def started(seed=0):
        torch.manual_seed(seed)
        network = regrow.sparsify(MLP.build(), 0.3, backend=storage, seed=seed)
        parts = [network[0].parameters(), torch.nn.ModuleList(network[1:]).parameters()]
        optimizers = [ADAM.build(each) for each in (parts if separate else [network.parameters()])]
        updaters = [
            regrow.TopologyUpdater(network, optimizers[number % len(optimizers)], recipe, seed=seed, weights=names)
            for number, (recipe, names) in enumerate(
                zip([method("set").recipe(), method("sparse-momentum").recipe()], TWO, strict=True)
            )
        ]
        return network, optimizers, updaters

    def train(network, optimizers, seeds):
        for seed in seeds:
            network.zero_grad()
            (network(MLP.inputs(seed)) - 1).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()

    whole, first, second = started(), started(), started(seed=77)
    train(*whole[:2], range(STEPS))
    train(*first[:2], range(STOP))
    second[0].load_state_dict(saved_and_loaded(first[0].state_dict()))
    for optimizer, other in zip(second[1], first[1], strict=True):
        assert len(other.state_dict()[KEY]) == len(TWO) / len(first[1])
        optimizer.load_state_dict(saved_and_loaded(other.state_dict()))
    train(*second[:2], range(STOP, STEPS))
    for one, other in zip(second[1] + second[2], whole[1] + whole[2], strict=True):
        assert_same(one.state_dict(), other.state_dict())
    assert_same(dict(second[0].state_dict()), dict(whole[0].state_dict()))


@each_storage
def test_a_state_that_carries_a_topology_loads_into_an_optimizer_without_an_updater(storage):
    first = run(method("static"), storage).train(range(STOP))
    saved = checkpoint(first)
    assert list(saved["optimizer"]) == ["state", "param_groups", KEY]
    bare = ADAM.build(first.model.parameters())
    bare.load_state_dict(saved["optimizer"])
    assert_same(bare.state_dict(), {key: saved["optimizer"][key] for key in ("state", "param_groups")})
    first.topology.remove()
    assert KEY not in first.optimizer.state_dict()


@each_storage
@pytest.mark.parametrize("model_first", [True, False])
def test_states_from_before_load_as_they_did(model_first, storage):
    """Their optimizer's state carries nothing, and the updater's own is loaded after it."""
    row = method("sparse-momentum")
    first, whole = run(row, storage).train(range(STOP)), run(row, storage).train(range(STEPS))
    saved = saved_and_loaded(first.state())
    del saved["optimizer"][KEY]
    second = run(row, storage, seed=77)
    for part in ("model", "optimizer") if model_first else ("optimizer", "model"):
        getattr(second, part).load_state_dict(saved[part])
    second.topology.load_state_dict(saved["topology"])
    assert_same(second.train(range(STOP, STEPS)).state(), whole.state())


@each_storage
@pytest.mark.parametrize("growth", [None, regrow.growth.candidates(2, 1)], ids=["default", "candidates"])
def test_an_optimizer_loaded_before_its_model_raises_at_the_step_unless_the_updater_is_loaded_last(growth, storage):
    row = method("sparse-momentum")
    saved = saved_and_loaded(run(row, storage, growth=growth).train(range(STOP)).state())
    second = run(row, storage, seed=77, growth=growth)
    second.optimizer.load_state_dict(saved["optimizer"])
    assert second.topology.step == 0
    second.model.load_state_dict(saved["model"])
    with pytest.raises(RuntimeError, match="beside a model with other positions, so load the model's state before it"):
        second.optimizer.step()
    second.topology.load_state_dict(saved["topology"])
    whole = run(row, storage, growth=growth).train(range(STEPS))
    assert_same(second.train(range(STOP, STEPS)).state(), whole.state())


@each_storage
def test_a_load_without_a_topology_raises_at_the_step(storage):
    row = method("static")
    first = run(row, storage).train(range(STOP))
    first.topology.remove()
    second = run(row, storage, seed=77)
    load(second, checkpoint(first))
    message = (
        r"without that of its topology and the schedule would begin anew: give load_state_dict\(\) of the Topology"
    )
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            second.optimizer.step()
    assert second.topology.step == 0
    second.topology.load_state_dict(second.topology.state_dict())  # to begin anew is asked for
    second.train(range(STEPS))
    assert second.topology.step == STEPS


@each_storage
def test_states_of_distributed_checkpoints_hold_none_and_the_updaters_own_makes_up_for_it(storage):
    row = method("sparse-momentum")
    first, second = run(row, storage).train(range(STOP)), run(row, storage, seed=77)
    model_state, optimizer_state = get_state_dict(first.model, first.optimizer)
    set_state_dict(second.model, second.optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
    with pytest.raises(RuntimeError, match="without that of its topology"):
        second.optimizer.step()
    second.topology.load_state_dict(first.topology.state_dict())
    assert_same(second.train(range(STOP, STEPS)).state(), run(row, storage).train(range(STEPS)).state())


def test_a_topology_of_other_weights_is_none():
    row = method("set")
    second = run(row)
    first = Run(MLP, row.recipe(), ADAM, weights=["0.*"])
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    with pytest.raises(RuntimeError, match="without that of its topology"):
        second.optimizer.step()
