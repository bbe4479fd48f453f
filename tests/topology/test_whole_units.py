"""Topology in units: whole blocks leave and join, on every layer, with every method, on both storages."""

import dataclasses

import pytest
import torch
from agreement import EVERY, STEPS, assert_storages_agree, skip_where_all_must_grow
from torch import nn

import regrow
from cases import Model, Run, assert_same, each_block, each_method, each_stored, method, model, optimization, weights
from regrow.growth import candidates, window
from regrow.storage import sparse_weights

SGD, ADAM = optimization("sgd-nesterov"), optimization("adamw-foreach")


def blocks_of(mask, unit):
    """Return for each unit of a mask how many of its weights exist, by plain slicing."""
    plane = mask.reshape(mask.shape[0], mask.shape[1] if mask.dim() > 1 else 1, -1)
    rows, columns = unit
    return [
        int(plane[top : top + rows, left : left + columns, at].sum())
        for top in range(0, plane.shape[0], rows)
        for left in range(0, plane.shape[1], columns)
        for at in range(plane.shape[2])
    ]


def assert_whole(network):
    for weight in sparse_weights(network).values():
        assert set(blocks_of(weight.mask(), weight.units.unit)) <= {0, weight.units.size}


@pytest.mark.pairs
@each_stored
@each_method
@each_block
def test_whole_units_leave_and_join_and_the_number_of_weights_stays(method, model, storage, block):
    run = Run(model, method.recipe(), SGD, storage=storage, block=block, density=0.5 if method.keeps_number else None)
    nonzeros = sum(int(mask.sum()) for mask in regrow.masks(run.model).values())
    for step in range(1, 7):
        before = regrow.masks(run.model)
        run.step(step)
        masks = regrow.masks(run.model)
        assert_whole(run.model)
        for name, weight in weights(run.model).items():
            assert not weight[~masks[name]].any()
            assert step in method.updates or torch.equal(masks[name], before[name])
            assert not method.keeps_layers or masks[name].sum() == before[name].sum()
        assert not method.keeps_number or sum(int(mask.sum()) for mask in masks.values()) == nonzeros


@pytest.mark.pairs
@each_method
@pytest.mark.parametrize("growth", [regrow.growth.exact(), window(2), candidates(2, 1)], ids=str)
@pytest.mark.parametrize("name", ["mlp", "conv2d", "grouped"])
@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=lambda row: row.name)
def test_both_storages_have_the_same_units(method, growth, name, optimizer):
    skip_where_all_must_grow(growth, method)

    def make(storage):
        recipe = dataclasses.replace(method.recipe(), growth=growth)
        return Run(model(name), recipe, optimizer, storage=storage, block=(4, 2), prepare=nn.Module.double)

    masked, sparse = make("masked"), make("cpu")
    for seed in range(7):
        masked.step(seed)
        sparse.step(seed)
        assert_same(regrow.masks(sparse.model), regrow.masks(masked.model))
    for name, weight in weights(sparse.model).items():
        torch.testing.assert_close(weight, weights(masked.model)[name], rtol=1e-9, atol=1e-12)


class Batches(Model):
    """A model that learns from more samples than there are lanes in a vector: kernels for units take them."""

    def inputs(self, seed, batch=20):
        return super().inputs(seed, batch)


def linear():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))


def conv1d():
    return nn.Sequential(nn.Conv1d(4, 8, 3, stride=2, padding=1), nn.Tanh(), nn.Conv1d(8, 16, 3, dilation=2, groups=2))


def conv2d():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 16, 3, (2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
        nn.Tanh(),
        nn.Conv2d(16, 8, 1, stride=2),
    )


LAYERS = {"linear": (linear, (8,)), "conv1d": (conv1d, (4, 12)), "conv2d": (conv2d, (4, 5, 4))}


@pytest.mark.pairs
@pytest.mark.parametrize("name", ["sparse-momentum", "set", "rigl"])
@pytest.mark.parametrize("growth", [regrow.growth.exact(), window(2), candidates(2, 1)], ids=str)
@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=lambda row: row.name)
@pytest.mark.parametrize("layers", LAYERS)
def test_kernels_for_units_train_as_masked_storage_does(name, growth, optimizer, layers):
    build, shape = LAYERS[layers]
    row = Batches(layers, build, shape, ())

    def make(storage):
        recipe = dataclasses.replace(method(name).factory(every=EVERY, steps=STEPS), growth=growth)
        run = Run(row, recipe, optimizer, storage=storage, block=(4, 1))
        assert {weight.units.unit for weight in sparse_weights(run.model).values()} == {(4, 1)}
        return run

    assert make("cpu").model[0].pattern.rows_of_entry(1) == 4
    assert assert_storages_agree(make, 1e-4) >= 1  # units that return at once are no change


def test_sides_that_do_not_divide_take_the_largest_divisor():
    network = nn.Sequential(
        nn.Conv2d(6, 10, 3), nn.Conv2d(10, 9, 1, groups=1), nn.ConvTranspose2d(9, 8, 2), nn.Linear(5, 7)
    )
    regrow.sparsify(network, 0.5, block=(4, 3))
    units = {name: weight.units.unit for name, weight in sparse_weights(network).items()}
    # transposed convolutions have their inputs first
    assert units == {"0.weight": (2, 3), "1.weight": (3, 2), "2.weight": (3, 4), "3.weight": (1, 1)}


def test_units_do_not_span_the_groups_of_a_convolution():
    network = regrow.sparsify(nn.Sequential(nn.Conv2d(4, 8, 3, groups=4)), 0.5, block=(4, 4))
    (weight,) = sparse_weights(network).values()
    assert weight.units.unit == (2, 1)


@pytest.mark.parametrize("storage", ["masked", "cpu"])
def test_masks_that_are_no_whole_units_are_refused(storage):
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[0, 0] = True
    with pytest.raises(ValueError, match=r"the mask of '0.weight' does not fit this block"):
        regrow.sparsify(nn.Sequential(nn.Linear(6, 4)), masks={"0.weight": mask}, block=(2, 1), backend=storage)


def test_a_block_has_at_least_one_output_and_input():
    with pytest.raises(ValueError, match="at least one output and one input"):
        regrow.sparsify(nn.Linear(6, 4), 0.5, block=(0, 1))


def test_the_summary_names_units():
    text = str(regrow.summary(regrow.sparsify(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6)), 0.5, block=(4, 1))))
    assert "4x1" in text
    assert "3x1" in text


def test_a_topology_state_of_other_units_is_refused():
    states = [
        Run(model("mlp"), method("set").recipe(), SGD, block=block).topology.state_dict() for block in ((1, 1), (2, 1))
    ]
    run = Run(model("mlp"), method("set").recipe(), SGD, block=(2, 1))
    run.topology.load_state_dict(states[1])
    with pytest.raises(ValueError, match=r"the units differ in 0.weight"):
        run.topology.load_state_dict(states[0])
