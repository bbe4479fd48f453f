"""Trainings on both storages, side by side: equal masks and, to rounding, equal weights after every step."""

import dataclasses

import pytest
import torch
from torch import nn

import regrow
from cases import Run, assert_same, method, model, optimization, weights

EVERY, STEPS = 3, 12
MLP, SGD, ADAM = model("mlp"), optimization("sgd-nesterov"), optimization("adam")
each_main_optimizer = pytest.mark.parametrize(
    "optimization", [SGD, optimization("adamw-foreach")], ids=lambda row: row.name
)


def run(growth, storage="cpu", method=None, model=MLP, optimization=SGD, *, keep_returning=False, **settings):
    recipe = (method or momentum_method()).factory(every=EVERY, steps=STEPS)
    recipe = dataclasses.replace(recipe, growth=growth, keep_returning=keep_returning)
    settings = {"prepare": nn.Module.double, **settings}
    return Run(model, recipe, optimization, storage=storage, **settings)


def momentum_method():
    return method("sparse-momentum")


def assert_close(left, right, tolerance):
    """Assert equal masks, and weights that differ by `tolerance` of the largest of their layer at most."""
    assert_same(regrow.masks(left.model), regrow.masks(right.model))
    ours, theirs = weights(left.model), weights(right.model)
    for name, weight in theirs.items():
        assert (ours[name] - weight).abs().max() <= tolerance * weight.abs().max()


def assert_storages_agree(make, tolerance, steps=range(STEPS)):
    """Assert that two trainings, one on each storage, have the same masks and weights after every step."""
    masked, sparse = (make(storage) for storage in ("masked", "cpu"))
    updates = 0
    for seed in steps:
        before = regrow.masks(masked.model)
        for one in (masked, sparse):
            one.step(seed)
        updates += any(not torch.equal(mask, before[name]) for name, mask in regrow.masks(masked.model).items())
        assert_close(sparse, masked, tolerance)
    return updates


def skip_where_all_must_grow(growth, method):
    """Leave out sources that look at some absent weights alone, for a method that must be able to grow all."""
    if method.grows_all and growth.per_nonzero is not None:
        pytest.skip("every absent weight grows")
