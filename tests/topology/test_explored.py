"""The part of all weights that were ever active, beside a union of masks after every step."""

import pytest
import torch
from torch import nn

import regrow
from cases import STEPS, Run, each_method, each_storage, model, optimization


@each_storage
@each_method
@pytest.mark.parametrize("block", [(1, 1), (4, 1)], ids=str)
def test_it_is_the_union_of_all_masks(method, storage, block):
    explored = None

    def add(step, changes):
        explored.add(step, changes)

    run = Run(model("mlp"), method.recipe(), optimization("sgd-nesterov"), storage=storage, block=block, on_update=add)
    explored = regrow.Explored(run.model)
    ever = regrow.masks(run.model)
    for step in range(STEPS):
        run.step(step)
        ever = {name: mask | ever[name] for name, mask in regrow.masks(run.model).items()}
        total = sum(int(mask.sum()) for mask in ever.values())
        assert explored.rate == total / sum(mask.numel() for mask in ever.values())
    assert explored.by_layer == {name: float(mask.sum()) / mask.numel() for name, mask in ever.items()}


def test_it_goes_on_from_a_state_and_refuses_that_of_another_model():
    network = regrow.sparsify(nn.Linear(9, 7), density=0.3, seed=1)
    first, second = regrow.Explored(network), regrow.Explored(network)
    grow = (~regrow.masks(network)["weight"]).flatten().nonzero().flatten()[:11]
    change = regrow.Change(drop=torch.empty(0, dtype=torch.int64), grow=grow)
    first.add(1, {"weight": change})
    state = first.state_dict()
    assert state["weight"].numel() == 8  # a bit for each of 63 weights
    second.load_state_dict(state)
    assert second.rate == first.rate == (19 + 11) / 63
    first.add(2, {"weight": change})
    assert first.rate == second.rate
    with pytest.raises(ValueError, match="other sparse weights"):
        regrow.Explored(regrow.sparsify(nn.Linear(99, 7), density=0.3)).load_state_dict(state)
