"""Averages of sparse models over a training, in both storages."""

import copy

import pytest
import torch
from torch.optim import swa_utils

import regrow
from cases import Run, each_storage, method, model, optimization

SETTINGS = {
    "mean": {},
    "mean with buffers": {"use_buffers": True},
    "ema": {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)},
    "ema with buffers": {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9), "use_buffers": True},
    "own": {"avg_fn": lambda average, value, count: 0.5 * (average + value)},
}
NAMES = ("mlp", "conv2d")


def started(name, storage):
    """Return a run in which both storages grow the same, to rounding."""
    recipe = regrow.sparse_momentum(every=2, steps=20, growth=regrow.growth.exact())
    return Run(
        model(name), recipe, optimization("sgd-momentum"), storage=storage, prepare=lambda module: module.double()
    )


def both_averaged(name, storage, settings, steps=8):
    """Return an average of a sparse model in training, and PyTorch's own average of dense copies of it."""
    run = started(name, storage)
    average = regrow.AveragedModel(run.model, **settings)
    dense = swa_utils.AveragedModel(regrow.densify(copy.deepcopy(run.model)), **settings)
    before = regrow.masks(run.model)
    for seed in range(steps):
        run.step(seed)
        average.update_parameters(run.model)
        dense.update_parameters(regrow.densify(copy.deepcopy(run.model)))
    after = regrow.masks(run.model)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    return run, average, dense


@each_storage
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_an_average_is_that_of_the_dense_weights(name, storage, settings):
    _, average, dense = both_averaged(name, storage, settings)
    torch.testing.assert_close(dict(average.state_dict()), dict(dense.state_dict()))
    batches = [model(name).inputs(seed).double() for seed in (100, 101)]
    for each in (average, dense):
        swa_utils.update_bn(batches, each)
        each.eval()
    torch.testing.assert_close(average(batches[0]), dense(batches[0]))


def test_both_storages_have_the_same_average():
    averages = [both_averaged("mlp", storage, {})[1] for storage in ("masked", "cpu")]
    torch.testing.assert_close(*(dict(average.state_dict()) for average in averages))


@each_storage
def test_the_model_trains_on_as_without_an_average(storage):
    run, average, _ = both_averaged("mlp", storage, {})
    alone = started("mlp", storage)
    torch.testing.assert_close(
        regrow.dense_state_dict(run.model), regrow.dense_state_dict(alone.train(range(8)).model), rtol=0, atol=0
    )
    assert regrow.masks(average.module) == {}
    # A union of the positions of all averaged models.
    assert int(average.module[0].weight.count_nonzero()) > int(regrow.masks(run.model)["0.weight"].sum())


def test_pytorchs_own_average_of_masked_models_computes_with_all_and_is_not_cut_in_silence():
    run = Run(model("mlp"), method("set").recipe(), optimization("sgd"))
    own, ours = swa_utils.AveragedModel(run.model), regrow.AveragedModel(run.model)
    for seed in range(8):
        run.step(seed)
        own.update_parameters(run.model)
        ours.update_parameters(run.model)
    x = model("mlp").inputs(100)
    torch.testing.assert_close(own.eval()(x), ours.eval()(x))
    assert "absent by the masks of 0.weight" in str(regrow.summary(own.module))
    for use in (regrow.dense_state_dict, lambda module: regrow.densify(copy.deepcopy(module))):
        with pytest.warns(UserWarning, match=r"absent weights of 0.weight, 3.weight are not zero.*AveragedModel"):
            use(own.module)


def test_a_bare_layer_has_no_average():
    layer = regrow.sparsify(torch.nn.Sequential(torch.nn.Linear(4, 2)), 0.5, backend="cpu")[0]
    with pytest.raises(ValueError, match="put it in a module"):
        regrow.AveragedModel(layer)
