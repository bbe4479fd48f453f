"""What growth knows of absent weights: the same on every storage, from each source."""

import dataclasses
import io
import re

import pytest
import torch
from agreement import (
    ADAM,
    EVERY,
    MLP,
    SGD,
    STEPS,
    assert_close,
    assert_storages_agree,
    each_main_optimizer,
    momentum_method,
    run,
    skip_where_all_must_grow,
)
from torch import nn

import regrow
from cases import COMPATIBLE, METHODS, MODELS, Model, Run, assert_same, method, model, optimization
from regrow.core.growth import candidates, exact, window
from regrow.core.positions import lookup
from regrow.ops.select import serving
from regrow.storage import sparse_weights
from regrow.topology.optimizer_state import momentum

SOURCES = [exact(), window(1), window(2), window(7), candidates(2, 1), candidates(7, 0.5)]
each_source = pytest.mark.parametrize("growth", SOURCES, ids=str)
each_sparse_model = pytest.mark.parametrize("model", [row for row in MODELS if row.sparse], ids=lambda row: row.name)
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda row: row.name)


@pytest.mark.pairs
@each_method
@each_main_optimizer
@each_sparse_model
def test_masked_and_sparse_storage_agree(method, optimization, model):
    def make(storage):
        return run(exact(), storage, method, model, optimization)

    recipe = method.factory(every=EVERY, steps=STEPS)
    assert assert_storages_agree(make, 1e-10) == sum(recipe.updates_in(step) for step in range(1, STEPS + 1))


@pytest.mark.pairs
@each_method
@each_main_optimizer
@pytest.mark.parametrize("growth", [exact(), window(2), candidates(2, 1)], ids=str)
def test_storages_agree_on_weights_that_return_as_they_were(growth, method, optimization):
    skip_where_all_must_grow(growth, method)
    assert_storages_agree(lambda storage: run(growth, storage, method, MLP, optimization, keep_returning=True), 1e-10)


# Batch norm makes the gradients of the weights before it cancel, so that rounding is all that is left of some.
WITHOUT_NORM = [
    Model(
        "linear", lambda: nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 5)), (8,), ("0.weight", "2.weight")
    ),
    *(row for row in MODELS if row.sparse and row.name != "mlp"),
]


@pytest.mark.pairs
@each_method
@each_main_optimizer
@pytest.mark.parametrize("model", WITHOUT_NORM, ids=lambda row: row.name)
def test_in_single_precision_they_agree_to_rounding(method, optimization, model):

    def make(storage):
        return run(exact(), storage, method, model, optimization, prepare=lambda network: network)

    assert serving("conv2d", torch.zeros(1)) == "cpu"  # or sparse storage computes as masked storage does
    assert_storages_agree(make, 1e-4)


@pytest.mark.parametrize(("method", "optimization"), COMPATIBLE, ids=lambda row: row.name)
def test_storages_agree_with_every_optimizer(method, optimization):
    assert_storages_agree(lambda storage: run(exact(), storage, method, MLP, optimization), 1e-10)


@pytest.mark.pairs
@each_source
@each_method
@each_main_optimizer
def test_storages_agree_on_every_source(growth, method, optimization):
    skip_where_all_must_grow(growth, method)
    assert_storages_agree(lambda storage: run(growth, storage, method, MLP, optimization), 1e-10)


@pytest.mark.parametrize("storage", ["masked", "cpu"])
@pytest.mark.parametrize("optimization", [SGD, ADAM, optimization("rmsprop-momentum")], ids=lambda row: row.name)
def test_a_window_over_the_whole_training_is_exact(storage, optimization):
    whole, all_steps = (run(growth, storage, optimization=optimization) for growth in (window(STEPS), exact()))
    for seed in range(STEPS):
        whole.step(seed)
        all_steps.step(seed)
        assert_close(whole, all_steps, 1e-12)


def test_methods_without_momentum_need_the_step_of_the_update_alone():
    ends = [run(growth, method=method("rigl")).train(range(STEPS)) for growth in (exact(), window(1), window(5))]
    for end in ends[1:]:
        assert_same(end.model.state_dict(), ends[0].model.state_dict())


def test_absent_weights_are_watched_in_the_window_alone():
    one = run(window(2))
    watched = []
    for seed in range(STEPS):
        watched.append(one.model[0].covered is not None)
        one.step(seed)
    # steps 4, 7 and 10 carry out updates; a window is that step and the one before
    assert watched == [False, False, True, True, False, True, True, False, True, True, False, False]


def test_static_and_random_growth_watch_nothing():
    for name in ("static", "set"):
        one = run(exact(), method=method(name))
        for seed in range(STEPS):
            assert one.model[0].covered is None
            one.step(seed)


@pytest.mark.parametrize("optimization", [SGD, ADAM], ids=lambda row: row.name)
def test_a_window_starts_from_zero_and_reads_like_an_optimizer_that_began_there(optimization):
    """The momentum that grows is that of a fresh optimizer over a dense weight, through the window's gradients."""
    seen = {}

    def grow(entries):
        seen[len(seen)] = (entries.index, entries.momentum)
        return entries.momentum.abs()

    recipe = dataclasses.replace(
        momentum_method().factory(every=EVERY, steps=STEPS), growth=window(2), grow=grow, needs=("momentum",)
    )
    one = Run(MLP, recipe, optimization, storage="cpu", prepare=nn.Module.double)
    dense = {name: nn.Parameter(torch.zeros(mask.shape).double()) for name, mask in regrow.masks(one.model).items()}
    fresh = optimization.build(dense.values())
    candidates_before = {name: ~mask.flatten() for name, mask in regrow.masks(one.model).items()}
    for seed in range(EVERY + 1):
        if seed > 1:
            plain = MLP.build().double().train()
            plain.load_state_dict(regrow.dense_state_dict(one.model))
            (plain(MLP.inputs(seed).double()) - 1).square().mean().backward()
            for name, parameter in dense.items():
                parameter.grad = plain.get_parameter(name).grad
            fresh.step()
            with torch.no_grad():
                for parameter in dense.values():
                    parameter.zero_()
        one.step(seed)
    for (index, read), (name, parameter) in zip(seen.values(), dense.items(), strict=True):
        absent = candidates_before[name][index]
        expected = momentum(fresh, parameter, fresh.param_groups[0]).flatten()[index]
        torch.testing.assert_close(read[absent], expected[absent])


@pytest.mark.parametrize("storage", ["masked", "cpu"])
@pytest.mark.parametrize("optimization", [SGD, ADAM, optimization("radam")], ids=lambda row: row.name)
def test_a_grown_weight_has_the_momentum_that_made_it_grow(storage, optimization):
    """Whatever the number of steps that the window had, and that the weights which it joins have had."""
    read = []

    def grow(entries):
        read.append(entries)
        return entries.momentum.abs()

    def check(step, changes):
        for (name, weight), entries in zip(sparse_weights(one.model).items(), read[-2:], strict=True):
            drop, grown = changes[name].drop, changes[name].grow
            has = momentum(one.optimizer, weight.weight, one.optimizer.param_groups[0])
            order = entries.index.argsort()
            expected = lookup(grown, entries.index[order], entries.momentum[order])
            torch.testing.assert_close(weight.at(has, grown), expected)
            assert step == EVERY or len(grown[~torch.isin(grown, drop)])

    recipe = dataclasses.replace(
        momentum_method().factory(every=EVERY, steps=STEPS), growth=window(2), grow=grow, needs=("momentum",)
    )
    one = Run(MLP, recipe, optimization, storage=storage, prepare=nn.Module.double, on_update=check)
    one.train(range(STEPS))
    assert len(read) == 2 * 3


@pytest.mark.pairs
@pytest.mark.parametrize("storage", ["masked", "cpu"])
@pytest.mark.parametrize("at", [1, 2, 4])  # before, within and after a window
@pytest.mark.parametrize("name", ["sparse-momentum", "rigl", "set"])
@pytest.mark.parametrize("growth", [exact(), window(2), candidates(2, 1)], ids=str)
def test_a_training_resumed_in_a_window_equals_the_uninterrupted_to_the_bit(growth, name, at, storage):
    first, whole = (run(growth, storage, method(name)) for _ in range(2))
    file = io.BytesIO()
    torch.save(first.train(range(at)).state(), file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    second = run(growth, storage, method(name), seed=77)
    second.model.load_state_dict(checkpoint["model"])
    second.optimizer.load_state_dict(checkpoint["optimizer"])
    second.topology.load_state_dict(checkpoint["topology"])
    assert_same(second.train(range(at, 8)).state(), whole.train(range(8)).state())


class _Loop:
    """Ways to get from a batch to a step, all of which must leave growth the same."""

    @staticmethod
    def plain(one, seed):
        one.step(seed)

    @staticmethod
    def to_zero(one, seed):
        one.optimizer.zero_grad(set_to_none=False)
        one.loss(seed).backward()
        one.optimizer.step()

    @staticmethod
    def discarded(one, seed):
        one.loss(seed + 100).backward()
        one.step(seed)

    @staticmethod
    def discarded_to_zero(one, seed):
        one.loss(seed + 100).backward()
        _Loop.to_zero(one, seed)

    @staticmethod
    def computed_without_accumulating(one, seed):
        one.optimizer.zero_grad()
        torch.autograd.grad(one.loss(seed + 100), list(one.model.parameters()))
        one.loss(seed).backward()
        one.optimizer.step()

    @staticmethod
    def cleared_between_forward_and_backward(one, seed):
        loss = one.loss(seed)
        one.optimizer.zero_grad()
        loss.backward()
        one.optimizer.step()

    @staticmethod
    def accumulated(one, seed):
        one.optimizer.zero_grad()
        for _ in range(2):
            (one.loss(seed) / 2).backward()
        one.optimizer.step()

    @staticmethod
    def closed(one, seed):
        def closure():
            one.optimizer.zero_grad()
            loss = one.loss(seed)
            loss.backward()
            return loss

        one.optimizer.step(closure)

    @staticmethod
    def scaled(one, seed):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        one.optimizer.zero_grad()
        scaler.scale(one.loss(seed)).backward()
        scaler.step(one.optimizer)

    @staticmethod
    def skipped(one, seed):
        if seed:  # PyTorch's fused SGD starts from random memory if its very first step is skipped
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
            one.optimizer.zero_grad()
            scaler.scale(one.loss(seed + 100) * float("inf")).backward()
            scaler.step(one.optimizer)
            scaler.update()
        _Loop.scaled(one, seed)


@pytest.mark.parametrize("storage", ["masked", "cpu"])
@pytest.mark.parametrize("growth", [exact(), window(2), candidates(2, 1)], ids=str)
def test_a_layer_without_a_weight_left_trains_on(growth, storage):
    torch.manual_seed(0)
    network = MLP.build().double()
    shapes = {name: network.get_parameter(name).shape for name in MLP.weights}
    masks = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()}
    masks["3.weight"][:, ::2] = True
    regrow.sparsify(network, masks=masks, backend=storage)
    optimizer = SGD.build(network.parameters())
    recipe = dataclasses.replace(momentum_method().factory(every=EVERY, steps=STEPS), growth=growth)
    topology = regrow.TopologyUpdater(network, optimizer, recipe)
    for seed in range(STEPS):
        optimizer.zero_grad()
        (network(MLP.inputs(seed).double()) - 1).square().mean().backward()
        optimizer.step()
    assert topology.step == STEPS


LOOPS = [getattr(_Loop, name) for name in vars(_Loop) if not name.startswith("_")]


@pytest.mark.pairs
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
@pytest.mark.parametrize("name", ["sparse-momentum", "rigl"])
@pytest.mark.parametrize("optimization", [SGD, optimization("sgd-nesterov-fused")], ids=lambda row: row.name)
@pytest.mark.parametrize("storage", ["masked", "cpu"])
def test_gradients_of_absent_weights_go_the_way_of_the_others(loop, name, optimization, storage):
    ordinary, other = (run(window(2), storage, method(name), model("conv2d"), optimization) for _ in range(2))
    for seed in range(8):
        ordinary.step(seed)
        loop(other, seed)
    assert_close(other, ordinary, 1e-12)


def test_clipping_shortens_the_momentum_of_absent_weights_too():
    """SGD without decay is linear: weights of a loss that is scaled and clipped back agree."""
    ordinary, clipped = (run(window(2), method=momentum_method()) for _ in range(2))
    for seed in range(8):
        ordinary.step(seed)
        clipped.optimizer.zero_grad()
        (clipped.loss(seed) * 3).backward()
        # what a clip by norm does: one factor for all gradients
        torch._foreach_div_([parameter.grad for parameter in clipped.model.parameters()], 3)
        clipped.optimizer.step()
    assert_close(clipped, ordinary, 1e-12)


def largest_allocation(profile):
    """Return the size in bytes of the largest piece of memory that PyTorch took while it was profiled."""
    events, largest = list(profile.profiler.kineto_results.experimental_event_tree()), 0
    while events:
        event = events.pop()
        events += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            largest = max(largest, event.extra_fields.alloc_size)
    return largest


def largest_made_for_growth(network, growth, shape, optimizer):
    """Return the most numbers in one piece of memory that a training with updates takes."""
    recipe = dataclasses.replace(regrow.sparse_momentum(every=2, steps=6), growth=growth)
    with torch.profiler.profile(profile_memory=True) as profile:
        regrow.TopologyUpdater(network, optimizer, recipe)
        for step in range(4):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
    return largest_allocation(profile) // 4


@pytest.mark.parametrize("build", [torch.optim.SGD, torch.optim.AdamW], ids=lambda kind: kind.__name__)
def test_candidates_make_nothing_as_large_as_the_dense_weight(build):
    sizes = {}
    for growth in (candidates(2, 1), candidates(2, 3), window(2)):
        network = regrow.sparsify(nn.Sequential(nn.Linear(512, 512)), 0.01, backend="cpu")
        settings = {"momentum": 0.9} if build is torch.optim.SGD else {}
        optimizer = build(network.parameters(), lr=0.01, **settings)
        sizes[growth] = largest_made_for_growth(network, growth, (4, 512), optimizer)
    nonzeros = round(0.01 * 512 * 512)
    assert sizes[window(2)] >= 512 * 512  # what the check sees where something dense is made
    assert sizes[candidates(2, 1)] <= 8 * nonzeros
    assert sizes[candidates(2, 3)] <= 16 * nonzeros


@pytest.mark.parametrize("source", [window, lambda steps: candidates(steps, 1)])
def test_a_source_needs_a_step(source):
    with pytest.raises(ValueError, match="growth over 0 steps is not possible: gather for at least 1"):
        source(0)


@pytest.mark.parametrize("share", [0, -1, float("nan")])
def test_candidates_need_a_share(share):
    with pytest.raises(ValueError, match="candidates a nonzero is not possible: take more than 0"):
        candidates(5, share)


@pytest.mark.parametrize("name", ["sparse-momentum", "rigl"])
def test_an_update_before_anything_was_gathered_says_so(name):
    one = run(window(1), method=method(name)).train([0])
    with pytest.raises(RuntimeError, match=re.escape("nothing is known of the absent weights of '0.weight' at step 1")):
        one.topology.update()


def test_positions_that_changed_under_the_updater_are_an_error_not_a_broken_topology():
    one, other = run(exact()), run(exact(), seed=1)
    one.model.load_state_dict(other.model.state_dict())
    with pytest.raises(RuntimeError, match=r"'0.weight' changed under its TopologyUpdater: load the updater's state"):
        one.train(range(EVERY))


class Demanding(torch.optim.SGD):
    def __init__(self, params, *, secret):
        super().__init__(params, lr=0.1, momentum=0.9)


def test_an_optimizer_of_a_class_of_the_users_own_serves():
    def make(storage):
        one = run(exact(), storage)
        one.topology.remove()
        one.optimizer = Demanding(one.model.parameters(), secret=1)
        one.topology = regrow.TopologyUpdater(one.model, one.optimizer, one.topology.recipe)
        return one

    assert_storages_agree(make, 1e-10)


def test_settings_of_the_optimizer_count_as_they_are_at_each_step():
    def make(storage):
        one = run(exact(), storage)
        step = one.step

        def scheduled(seed):
            one.optimizer.param_groups[0].update(lr=0.1 / (seed + 1), momentum=0.9 - 0.05 * seed)
            step(seed)

        one.step = scheduled
        return one

    assert_storages_agree(make, 1e-10)


def test_momentum_may_be_of_several_groups():
    def make(storage):
        one = run(exact(), storage)
        one.topology.remove()
        groups = [{"params": one.model[3].parameters(), "momentum": 0.5}, {"params": one.model[0].parameters()}]
        one.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        one.topology = regrow.TopologyUpdater(one.model, one.optimizer, one.topology.recipe)
        return one

    assert_storages_agree(make, 1e-10)
