"""Checkpoints, copies, dtypes and memory formats."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import regrow
from cases import (
    Run,
    assert_same,
    each_method,
    each_model,
    each_storage,
    each_stored,
    method,
    model,
    optimization,
    weights,
)

STEPS = 8
MLP, SGD = model("mlp"), optimization("sgd-nesterov")
each_copy = pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
each_resumed = pytest.mark.parametrize(
    "optimization", [SGD, optimization("adam"), optimization("rmsprop-momentum")], ids=lambda row: row.name
)


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.pairs
@each_storage
@each_method
@each_resumed
@pytest.mark.parametrize("at", [1, 4, 5])  # before, right at and after an update
def test_a_resumed_training_equals_the_uninterrupted_to_the_bit(method, optimization, at, storage):
    whole = Run(MLP, method.recipe(), optimization, storage=storage, seed=0).train(range(STEPS))
    first = Run(MLP, method.recipe(), optimization, storage=storage, seed=0).train(range(at))
    checkpoint = saved_and_loaded(first.state())

    second = Run(MLP, method.recipe(), optimization, storage=storage, seed=77)
    second.model.load_state_dict(checkpoint["model"])
    second.optimizer.load_state_dict(checkpoint["optimizer"])
    second.topology.load_state_dict(checkpoint["topology"])
    second.train(range(at, STEPS))
    assert second.topology.step == STEPS
    assert_same(second.state(), whole.state())


@each_stored
def test_a_state_dict_loads_into_a_model_sparsified_with_another_seed(model, storage):
    source, target = (regrow.sparsify(model.build(), 0.3, backend=storage, seed=seed).eval() for seed in (0, 1))
    target.load_state_dict(saved_and_loaded(source.state_dict()))
    assert_same(regrow.masks(target), regrow.masks(source))
    assert_same(weights(target), weights(source))
    assert torch.equal(target(model.inputs(0)), source(model.inputs(0)))


@each_stored
@each_copy
def test_a_copy_is_the_same_and_independent(model, copied, storage):
    run = Run(model, method("set").recipe(), SGD, storage=storage)
    twin = copied(run.model)
    before = copy.deepcopy(twin.state_dict())
    assert_same(before, dict(run.model.state_dict()))
    run.train(range(3))
    assert_same(twin.state_dict(), before)
    optimizer = SGD.build(twin.parameters())
    topology = regrow.TopologyUpdater(twin, optimizer, method("set").recipe())
    run.model, run.optimizer = twin, optimizer
    run.train(range(3))
    assert topology.step == 3
    for name, mask in regrow.masks(twin).items():
        assert not weights(twin)[name][~mask].any()


@each_method
@each_model
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_model_converted_to_another_dtype_trains_on_sparse(method, model, dtype):
    run = Run(model, method.recipe(), SGD, prepare=lambda network: network.to(dtype))
    counts = {name: int(mask.sum()) for name, mask in regrow.masks(run.model).items()}
    run.train(range(5))
    for name, weight in weights(run.model).items():
        mask = regrow.masks(run.model)[name]
        assert weight.dtype == dtype
        assert mask.dtype == torch.bool
        assert not weight[~mask].any()
    if method.keeps_number:
        assert sum(int(mask.sum()) for mask in regrow.masks(run.model).values()) == sum(counts.values())


@each_method
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["conv2d", "transposed2d", "grouped"])
def test_channels_last_weights_give_the_same_as_contiguous_ones(method, name, when):
    """The gradients are given, for convolutions in other memory formats round otherwise."""
    last = torch.channels_last
    trained = []
    for in_channels_last in (False, True):
        torch.manual_seed(0)
        network = model(name).build()
        if in_channels_last and when == "before":
            network = network.to(memory_format=last)
        regrow.sparsify(network, 0.3, backend="masked")
        if in_channels_last and when == "after":
            network = network.to(memory_format=last)
        optimizer = SGD.build(network.parameters())
        regrow.TopologyUpdater(network, optimizer, method.recipe())
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            for parameter in network.parameters():
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            optimizer.step()
        assert network[0].weight.is_contiguous(memory_format=last) is in_channels_last
        trained.append(network)
    assert_same(regrow.masks(trained[1]), regrow.masks(trained[0]))
    assert all(torch.equal(a, b) for a, b in zip(trained[0].parameters(), trained[1].parameters(), strict=True))


def test_a_topology_state_holds_plain_values_and_does_not_change_with_the_training():
    run = Run(MLP, method("set").recipe(), SGD)
    state = run.topology.state_dict()
    kept = copy.deepcopy(state)
    run.train(range(4))
    assert_same(state, kept)
    assert run.topology.state_dict()["step"] == 4


def test_a_bare_module_has_names_without_a_dot():
    network = regrow.sparsify(nn.Linear(8, 4), 0.5)
    assert list(regrow.masks(network)) == ["weight"]
    assert set(regrow.dense_state_dict(network)) == {"weight", "bias"}
