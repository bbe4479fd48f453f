"""Growth reads the true gradient, whatever the optimizer does to `.grad`; skipped steps do not count."""

import dataclasses

import pytest
import torch

import regrow
from cases import OPTIMIZERS, STORAGES, Run, assert_same, each_fused, method, model, optimization, weights

MLP = model("mlp")
SCALED = [optimization(name) for name in ("sgd-nesterov", "sgd-nesterov-foreach", "sgd-nesterov-fused", "adam-fused")]
each_scaled = pytest.mark.parametrize("optimization", SCALED, ids=lambda row: row.name)


def reading_gradients(read):
    """Return RigL with an update due after every second step; `read` is given what it reads, layer by layer."""

    def grow(entries):
        read.append((entries.index, entries.grad.clone()))
        return entries.grad.abs()

    # named, or the score would be tried on entries that are none of the run's
    return dataclasses.replace(method("rigl").recipe(), grow=grow, needs=("gradient",))


def gradients(run):
    """Return a copy of the gradients of the sparse weights, dense as masked storage has them."""
    return [run.model.get_parameter(name).grad.clone() for name in regrow.masks(run.model)]


def dense_gradients(run, seed):
    """Return the gradients of the loss over the dense weights, from a model that was never sparse."""
    plain = run.case.build().train()
    plain.load_state_dict(regrow.dense_state_dict(run.model))
    (plain(run.case.inputs(seed)) - 1).square().mean().backward()
    return [plain.get_parameter(name).grad for name in regrow.masks(run.model)]


def assert_read(read, true, rtol=0, atol=0):
    """Assert that what growth read is the true gradient at its positions, to the bit unless allowed otherwise."""
    assert len(read) == len(true)
    for (index, gradient), dense in zip(read, true, strict=True):
        torch.testing.assert_close(gradient, dense.reshape(-1)[index], rtol=rtol, atol=atol)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("optimization", OPTIMIZERS, ids=lambda row: row.name)
def test_rigl_reads_the_gradient_of_the_loss(optimization, storage):
    read = []
    run = Run(MLP, reading_gradients(read), optimization, storage=storage).train([0, 1])
    run.optimizer.zero_grad()
    true = dense_gradients(run, 2)
    run.loss(2).backward()
    run.optimizer.step()
    assert_read(read, true, rtol=1e-4, atol=1e-6)


@each_scaled
def test_rigl_reads_the_gradient_without_the_scale_of_a_scaler(optimization):
    read, true = [], []
    run = Run(MLP, reading_gradients(read), optimization)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        run.optimizer.zero_grad()
        run.loss(step).backward()
        true = gradients(run)
        run.optimizer.zero_grad()
        scaler.scale(run.loss(step)).backward()
        scaler.step(run.optimizer)
        scaler.update()
    assert_read(read, true)


@each_scaled
@pytest.mark.parametrize("name", ["rigl", "sparse-momentum"])
def test_a_step_that_a_scaler_skips_does_not_count(name, optimization):
    """Steps 1, skipped, 2, 3: the update comes with the fourth call, and all ends as without the skipped one."""
    updates = []
    run = Run(MLP, method(name).recipe(), optimization, on_update=lambda step, _: updates.append(step))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step(seed, factor=1.0):
        run.optimizer.zero_grad()
        scaler.scale(run.loss(seed) * factor).backward()
        scaler.step(run.optimizer)
        scaler.update()

    step(0)
    before = weights(run.model), regrow.masks(run.model)
    step(1, factor=float("inf"))
    assert (run.topology.step, updates) == (1, [])
    assert_same((weights(run.model), regrow.masks(run.model)), before)
    step(2)
    assert (run.topology.step, updates) == (2, [])
    step(3)
    assert (run.topology.step, updates) == (3, [3])
    never_scaled = Run(MLP, method(name).recipe(), optimization).train([0, 2, 3])
    assert_same(weights(run.model), weights(never_scaled.model))
    assert_same(regrow.masks(run.model), regrow.masks(never_scaled.model))


@each_fused
def test_a_fused_optimizer_unscaled_by_hand_counts_as_usual(optimization):
    """After `scaler.unscale_`, as clipping wants it, the optimizer is handed no scale."""
    read = []
    run = Run(MLP, reading_gradients(read), optimization)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        run.optimizer.zero_grad()
        scaler.scale(run.loss(step)).backward()
        scaler.unscale_(run.optimizer)
        true = gradients(run)
        scaler.step(run.optimizer)
        scaler.update()
    assert run.topology.step == 3
    assert_read(read, true)


@pytest.mark.parametrize("name", ["sgd-nesterov", "sgd-nesterov-foreach", "sgd-nesterov-fused"])
@pytest.mark.parametrize("as_keyword", [False, True])
def test_rigl_reads_the_gradient_that_a_closure_makes(name, as_keyword):
    read, true = [], []
    run = Run(MLP, reading_gradients(read), optimization(name))

    def closure():
        run.optimizer.zero_grad()
        loss = run.loss(1)
        loss.backward()
        true[:] = gradients(run)
        return loss

    for _ in range(3):
        run.optimizer.step(closure=closure) if as_keyword else run.optimizer.step(closure)
    assert_read(read, true)
