"""Layers that redistribution has emptied go on, on both storages, and may be filled again."""

import dataclasses

import pytest
import torch
from torch import nn

import regrow
from cases import each_storage
from regrow.storage import sparse_weights

GROWTHS = [regrow.growth.exact(), regrow.growth.window(3), regrow.growth.candidates(3, 8)]
NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), (16, 8)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3)), (8, 4, 9)),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 16, 1)), (8, 4, 5, 5)),
}


@each_storage
@pytest.mark.parametrize("growth", GROWTHS, ids=["exact", "window", "candidates"])
@pytest.mark.parametrize("recipe", [regrow.set, regrow.rigl, regrow.sparse_momentum], ids=lambda made: made.__name__)
@pytest.mark.parametrize(("build", "shape"), NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("block", [(1, 1), (2, 2)], ids=str)
def test_an_emptied_layer_goes_on_and_is_filled_again(build, shape, block, recipe, growth, storage):
    seen = []

    def all_to_one(layers, dropped, total):
        first, second = layers
        # To the second layer, twice; then back to the first, which has no weight.
        back = 0 if len(seen) < 2 else layers[first].unit_size
        return {first: back, second: total - back}

    network = regrow.sparsify(build(), 0.2, backend=storage, block=block)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    made = dataclasses.replace(
        recipe(every=2, steps=40), growth=growth, fraction=lambda step: 1.0, rates=None, redistribute=all_to_one
    )
    regrow.TopologyUpdater(
        network,
        optimizer,
        made,
        on_update=lambda step, changes: seen.append([int(mask.sum()) for mask in regrow.masks(network).values()]),
    )
    size = sparse_weights(network)["0.weight"].units.size
    total = sum(int(mask.sum()) for mask in regrow.masks(network).values())
    for seed in range(9):
        optimizer.zero_grad()
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        network(x).square().mean().backward()
        optimizer.step()
    assert [first for first, _ in seen] == [0, 0, size, size]
    assert all(first + second == total for first, second in seen)


@each_storage
@pytest.mark.parametrize("growth", GROWTHS, ids=["exact", "window", "candidates"])
def test_a_branch_that_never_fires_may_lose_all_its_weights(growth, storage):
    torch.manual_seed(0)
    branch = nn.Linear(24, 24)
    nn.init.constant_(branch.bias, -100)  # nothing comes through the ReLU behind it, forwards or backwards
    network = nn.Sequential(nn.Linear(400, 24), branch, nn.ReLU(), nn.Linear(24, 200))
    network = regrow.sparsify(network, 0.2, backend=storage)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    recipe = regrow.sparse_momentum(every=3, steps=3000, prune_rate=0.5, growth=growth)
    topology = regrow.TopologyUpdater(network, optimizer, recipe)
    left = []
    for seed in range(60):
        hidden = network[0](torch.randn(5, 400, generator=torch.Generator().manual_seed(seed)))
        optimizer.zero_grad()
        (network[3](hidden + network[2](network[1](hidden))) - 1).square().mean().backward()
        optimizer.step()
        left.append(int(regrow.masks(network)["1.weight"].sum()))
    assert topology.step == 60
    assert min(left) <= 1
    assert all(parameter.isfinite().all() for parameter in network.parameters())
