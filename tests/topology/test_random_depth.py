"""Layers that are skipped at random: what `window` and `exact` have seen of them, on both storages."""

import dataclasses

import pytest
import torch
from torch import nn

import regrow
from cases import assert_same, optimization

EVERY = 4


def trained(growth, storage, recipe, optimizer, *, steps=26, skip=0.6, to_none=True):
    """Return where weights are after a training in which the layer in the middle is skipped at random."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)).double()
    network = regrow.sparsify(network, 0.3, backend=storage)
    built = optimization(optimizer).build(network.parameters())
    regrow.TopologyUpdater(network, built, dataclasses.replace(recipe(every=EVERY, steps=1000), growth=growth))
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        built.zero_grad(set_to_none=to_none)
        x = torch.randn(16, 8, dtype=torch.float64, generator=generator)
        hidden = network[0](x)
        if torch.rand(1, generator=generator) >= skip:
            hidden = hidden + network[1](hidden)
        (network[2](hidden) - 1).square().mean().backward()
        built.step()
    return regrow.masks(network)


@pytest.mark.parametrize("storage", ["masked", "cpu"])
@pytest.mark.parametrize("recipe", [regrow.rigl, regrow.sparse_momentum], ids=["rigl", "sparse-momentum"])
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adam"])
@pytest.mark.parametrize("to_none", [True, False], ids=["to None", "to zero"])
def test_a_window_that_has_seen_all_steps_grows_what_exact_does(storage, recipe, optimizer, to_none):
    # Gradients set to zero make a step for a layer that was skipped: momentum and decay go on.
    exact = trained(regrow.growth.exact(), "masked", recipe, optimizer, to_none=to_none)
    for growth in (regrow.growth.window(2 * EVERY), regrow.growth.exact()):
        assert_same(trained(growth, storage, recipe, optimizer, to_none=to_none), exact)


def test_a_shorter_window_differs_as_it_does_without_skipped_layers_and_alike_on_both_storages():
    # Momentum with a factor of 0.9 remembers more than three steps: a window that short has seen less.
    for skip in (0, 0.6):
        exact = trained(regrow.growth.exact(), "masked", regrow.sparse_momentum, "sgd-momentum", skip=skip)
        short = [
            trained(regrow.growth.window(3), storage, regrow.sparse_momentum, "sgd-momentum", skip=skip)
            for storage in ("masked", "cpu")
        ]
        assert any(not torch.equal(short[0][name], exact[name]) for name in exact)
        assert_same(*short)


def test_gradients_at_the_update_need_no_more_than_its_step():
    exact = trained(regrow.growth.exact(), "masked", regrow.rigl, "sgd-momentum")
    assert_same(trained(regrow.growth.window(1), "masked", regrow.rigl, "sgd-momentum"), exact)
