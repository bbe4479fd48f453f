"""Rules over all layers, or over outputs, choose the same weights on both storages."""

import dataclasses

import pytest
from agreement import STEPS, assert_storages_agree, each_main_optimizer
from torch import nn

import regrow
from cases import Run, method, model
from regrow.redistribute import by_rank, lowest_of_all
from regrow.score import gradient, magnitude, momentum, per_output

PARTS = {
    "by output": {"grow": momentum, "pick": per_output},
    "by output, gradient": {"grow": gradient, "pick": per_output, "reset_state": "warm"},
    "all layers grow": {"grow": momentum, "redistribute": by_rank(momentum)},
    "all layers drop": {"drops": lowest_of_all(magnitude), "rates": None},
    "nothing returns": {"may_return": False},
}


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("block", [(1, 1), (4, 1)], ids=str)
@pytest.mark.parametrize("name", ["mlp", "conv2d"])
@each_main_optimizer
def test_both_storages_choose_the_same(optimization, name, block, parts):
    recipe = dataclasses.replace(
        method("sparse-momentum").factory(every=3, steps=STEPS), growth=regrow.growth.exact(), **PARTS[parts]
    )

    def make(storage):
        return Run(model(name), recipe, optimization, storage=storage, block=block, prepare=nn.Module.double)

    assert assert_storages_agree(make, 1e-9) == 3
