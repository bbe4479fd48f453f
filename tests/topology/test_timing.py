"""When updates are carried out, and what an evaluation in between sees."""

import dataclasses

import pytest
import torch

import regrow
from cases import METHODS, STEPS, Run, assert_same, each_storage, method, model, optimization, weights

SGD = optimization("sgd-nesterov")
MOVING = [row for row in METHODS if row.due]


@each_storage
@pytest.mark.parametrize("row", MOVING, ids=lambda row: row.name)
@pytest.mark.parametrize("growth", [None, regrow.growth.exact(), regrow.growth.window(22)], ids=str)
def test_an_evaluation_after_an_epoch_sees_the_network_as_it_was_trained(row, storage, growth):
    """With an update after every epoch, the weights after its last step are as its step left them."""
    every = 3
    recipe = row.factory(every=every, steps=8 * every, growth=growth)
    moving = Run(model("mlp"), recipe, SGD, storage=storage)
    for epoch in range(3):
        moving.train(range(epoch * every, (epoch + 1) * every - 1))
        before, values = regrow.masks(moving.model), weights(moving.model)
        moving.step((epoch + 1) * every - 1)
        assert_same(regrow.masks(moving.model), before)
        for name, weight in weights(moving.model).items():
            assert not (before[name] & (weight == 0) & (values[name] != 0)).any()  # nothing was set to zero
    moving.step(3 * every)
    assert any((mask != before[name]).any() for name, mask in regrow.masks(moving.model).items())


@each_storage
def test_no_window_is_open_when_the_training_ends(storage):
    recipe = regrow.sparse_momentum(every=3, steps=9, growth=regrow.growth.window(22))
    run = Run(model("mlp"), recipe, SGD, storage=storage).train(range(9))
    for parameter in run.model.parameters():
        buffer = run.optimizer.state[parameter]["momentum_buffer"]
        assert buffer.shape == parameter.shape
    assert all(getattr(module, "covered", None) is None for module in run.model.modules())


@each_storage
@pytest.mark.parametrize("name", ["rigl"])
@pytest.mark.parametrize("row", [SGD, optimization("adamw-foreach"), optimization("adam-fused")], ids=lambda r: r.name)
def test_an_update_of_rigl_takes_the_place_of_a_step(name, row, storage):
    run = Run(model("mlp"), method(name).recipe(), row, storage=storage).train(range(2))
    before, masks = weights(run.model), regrow.masks(run.model)
    others = {key: value.clone() for key, value in run.model.named_parameters() if value.ndim == 1 and "bias" in key}
    seen = {}
    run.optimizer.zero_grad()
    run.loss(2).backward()
    gradients = {key: value.grad.clone() for key, value in run.model.named_parameters() if key in others}
    run.topology._on_update = lambda step, changes: seen.update({step: changes})
    run.optimizer.step()
    assert list(seen) == [3]
    for key, value in others.items():
        assert torch.equal(run.model.get_parameter(key), value)
        assert torch.equal(run.model.get_parameter(key).grad, gradients[key])
    for key, weight in weights(run.model).items():
        kept = masks[key] & regrow.masks(run.model)[key]
        assert torch.equal(weight[kept], before[key][kept])
        assert not weight[~kept].any()
        assert len(seen[3][key].grow)
    run.step(3)
    assert any(not torch.equal(run.model.get_parameter(key), value) for key, value in others.items())


def test_the_rate_is_that_of_the_step_after_which_an_update_is_due():
    asked = []

    def fraction(step):
        asked.append(step)
        return 0.5

    recipe = dataclasses.replace(method("set").recipe(), fraction=fraction)
    asked.clear()
    Run(model("mlp"), recipe, SGD).train(range(STEPS))
    assert asked == list(method("set").due)
