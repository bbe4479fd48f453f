"""Two processes train as one would with the batches of both: the same masks, the same weights to rounding."""

from copy import deepcopy

import pytest
import torch
from together import SOURCES, STEPS, Training, assert_as_one, average_by_hand, course
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import regrow
from cases import METHODS, STEP_METHODS
from regrow.processes import send_active

RANDOM = "set"


@pytest.mark.parametrize("growth", SOURCES)
@pytest.mark.parametrize("storage", ["masked", "cpu"])
def test_two_processes_are_as_one(pair, storage, growth):
    assert_as_one(pair, storage=storage, growth=growth)


@pytest.mark.parametrize("method", ["static", RANDOM, "rigl"])
def test_methods_without_momentum_too(pair, method):
    assert_as_one(pair, method=method, model="conv")


@pytest.mark.parametrize("row", STEP_METHODS, ids=lambda row: row.name)
def test_methods_that_act_in_every_step_too(pair, row):
    assert_as_one(pair, method=row.name, storage="masked", settings=dict(row.settings))


@pytest.mark.slow
@pytest.mark.parametrize("growth", SOURCES)
@pytest.mark.parametrize("storage", ["masked", "cpu"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
def test_every_method_source_and_storage(pair, row, storage, growth, optimizer):
    if row.grows_all and growth == "candidates":
        pytest.skip("every absent weight grows")
    assert_as_one(
        pair,
        method=row.name,
        model="conv",
        storage=storage,
        growth=growth,
        optimizer=optimizer,
        settings=dict(row.settings),
    )


@pytest.mark.parametrize(
    "wrapping",
    [
        {"gradient_as_bucket_view": True},
        {"static_graph": True},
        {"find_unused_parameters": True},
        {"given": "model"},
    ],
    ids=lambda wrapping: next(iter(wrapping)),
)
def test_the_ways_to_wrap_a_model(pair, wrapping):
    assert_as_one(pair, growth="window", **wrapping)


def accumulated(rank, size, storage):
    training = Training(rank, size, storage=storage, growth="window")
    for step in range(STEPS):
        training.optimizer.zero_grad()
        with training.network.no_sync():
            training.loss(step, 0, 2).backward()
        training.loss(step, 1, 2).backward()
        training.optimizer.step()
    return training.positions(), training.weights()


@pytest.mark.parametrize("storage", ["masked", "cpu"])
def test_gradients_are_accumulated_and_sent_once(pair, storage):
    first, second = pair(accumulated, storage)
    assert first == second
    positions, weights = course(0, 1, storage=storage, growth="window")[-1]
    assert first[0] == positions
    for name, numbers in weights.items():
        torch.testing.assert_close(torch.tensor(first[1][name]), torch.tensor(numbers), rtol=1e-9, atol=1e-12)


def sent(rank, size, growth):
    """Return for each step the numbers that were sent for gradients, and those that parameters and weights have."""
    training, counts = Training(rank, size, growth=growth), []
    numbers = 0

    def hook(group, bucket):
        nonlocal numbers
        numbers += bucket.buffer().numel()
        return allreduce_hook(group, bucket)

    training.network.register_comm_hook(None, hook)
    for step in range(STEPS):
        numbers, looks = 0, bool(training.topology.looks_at())
        parameters = sum(parameter.numel() for parameter in training.model.parameters())
        training.step(step)
        counts.append((looks, numbers, parameters))
    active = sum(layer.nonzeros for layer in regrow.summary(training.model).layers)
    biases = sum(p.numel() for name, p in training.model.named_parameters() if name.endswith("bias"))
    return counts, active + biases


def test_only_gradients_of_weights_that_exist_travel_outside_of_windows(pair):
    counts, exist = pair(sent, "window")[0]
    assert {numbers for looks, numbers, _ in counts if not looks} == {exist}
    assert {looks for looks, *_ in counts} == {False, True}
    assert all(numbers == parameters for _, numbers, parameters in counts)


def of_unequal_sizes(rank, size, sizes):
    """Train under a bound on compute, each process on images of its own size; return positions."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 40)
    )
    model = DistributedDataParallel(regrow.sparsify(model, 0.3, backend="masked"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    regrow.TopologyUpdater(model, optimizer, regrow.sparse_momentum(every=2, steps=8, compute=0.9))
    for _ in range(8):
        optimizer.zero_grad()
        model(torch.randn(4, 2, sizes[rank], sizes[rank])).square().mean().backward()
        optimizer.step()
    return [mask.nonzero().tolist() for mask in regrow.masks(model).values()]


def test_the_cost_of_weights_is_that_of_all_samples(pair):
    first, second = pair(of_unequal_sizes, (4, 9))
    assert first == second


def buffers_sent(rank, size, storage):
    training = Training(rank, size, storage=storage)
    outer = DistributedDataParallel(nn.Sequential(training.model, nn.BatchNorm1d(6).double()))
    outer(torch.randn(4, 12, dtype=torch.float64)).sum().backward()
    return list(training.network.named_module_buffers), list(outer.named_module_buffers)


@pytest.mark.parametrize("storage", ["masked", "cpu"])
def test_positions_are_not_sent_at_every_pass(pair, storage):
    for inner, outer in pair(buffers_sent, storage):
        assert inner == []
        assert sorted(outer) == ["1.num_batches_tracked", "1.running_mean", "1.running_var"]


def by_hand(rank, size, given, method):
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 6)), 0.3, backend="cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    recipe = regrow.methods.METHODS[method](every=2, steps=STEPS)
    group = distributed.group.WORLD if given else None
    regrow.TopologyUpdater(model, optimizer, recipe, process_group=group)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(
            torch.randn(4, 10, generator=torch.Generator().manual_seed(size * step + rank))
        ).square().mean().backward()
        average_by_hand(model)
        optimizer.step()
    return [mask.nonzero().tolist() for mask in regrow.masks(model).values()]


@pytest.mark.parametrize("method", ["sparse-momentum", "rigl", RANDOM])
def test_gradients_may_be_averaged_by_hand(pair, method):
    first, second = pair(by_hand, True, method)
    assert first == second


def saved_in_a_window(rank, size):
    training = Training(rank, size, growth="exact")
    for step in range(3):
        training.step(step)
    parts = {"model": training.model, "optimizer": training.optimizer, "topology": training.topology}
    state = deepcopy({name: part.state_dict() for name, part in parts.items()})
    for step in range(3, STEPS):
        training.step(step)
    return state, training.positions(), training.weights()


def test_a_checkpoint_of_two_processes_goes_on_in_one(pair):
    state, positions, weights = pair(saved_in_a_window)[0]
    training = Training(0, 1, growth="exact", seed=1)
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.topology.load_state_dict(state["topology"])
    for step in range(3, STEPS):
        training.step(step)
    assert training.positions() == positions
    for name, numbers in weights.items():
        torch.testing.assert_close(torch.tensor(training.weights()[name]), torch.tensor(numbers), rtol=1e-9, atol=1e-12)


def packed(rank, size, growth, method):
    """Train on masked storage with what travels cut to what exists; return the states and what each step sent."""
    training, states, counts = Training(rank, size, storage="masked", growth=growth, method=method), [], []
    send_active(training.network, training.topology)
    numbers, reduce = 0, distributed.all_reduce

    def counting(tensor, *args, **kwargs):
        nonlocal numbers
        numbers += tensor.numel()
        return reduce(tensor, *args, **kwargs)

    distributed.all_reduce = counting
    try:
        for step in range(STEPS):
            numbers, looks = 0, bool(training.topology.looks_at())
            training.step(step)
            states.append((training.positions(), training.weights()))
            counts.append((looks, numbers))
    finally:
        distributed.all_reduce = reduce
    weights = regrow.summary(training.model).layers
    biases = sum(p.numel() for name, p in training.model.named_parameters() if name.endswith("bias"))
    return (
        states,
        counts,
        sum(layer.nonzeros for layer in weights) + biases,
        sum(p.numel() for p in training.model.parameters()),
    )


@pytest.mark.parametrize(("method", "growth"), [("sparse-momentum", "window"), ("rigl", "default"), ("set", "default")])
def test_masked_gradients_of_absent_weights_travel_only_where_they_are_looked_at(pair, method, growth):
    (first, counts, exist, all_), (second, *_) = pair(packed, growth, method)
    assert first == second
    plain = pair(course, storage="masked", growth=growth, method=method)[0]
    for (ours, our_weights), (theirs, their_weights) in zip(first, plain, strict=True):
        assert ours == theirs
        for name, weights in their_weights.items():
            torch.testing.assert_close(torch.tensor(our_weights[name]), torch.tensor(weights), rtol=1e-9, atol=1e-12)
    assert {numbers for looks, numbers in counts if not looks} == {exist}
    assert {numbers for looks, numbers in counts if looks} <= {all_}
