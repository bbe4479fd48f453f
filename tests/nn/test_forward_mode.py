"""Tangents through sparse layers and what stands between them: forward-mode derivatives equal those of dense layers."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import regrow

NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (5, 6)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3, padding="same"), nn.Tanh(), nn.Conv1d(6, 2, 2)), (3, 4, 7)),
    "conv2d": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 1),
            nn.AdaptiveAvgPool2d(1),
        ),
        (3, 4, 6, 6),
    ),
}
each_network = pytest.mark.parametrize(("build", "shape"), NETWORKS.values(), ids=NETWORKS.keys())


def both(build):
    sparse = regrow.sparsify(build(), 0.5, backend="cpu").eval()
    return sparse, regrow.densify(copy.deepcopy(sparse))


@each_network
def test_jvp_and_jacfwd_are_those_of_dense_layers(build, shape):
    sparse, dense = both(build)
    x, direction = torch.randn(shape), torch.randn(shape)
    torch.testing.assert_close(torch.func.jvp(sparse, (x,), (direction,)), torch.func.jvp(dense, (x,), (direction,)))

    torch.testing.assert_close(torch.func.jacfwd(sparse)(x), torch.func.jacfwd(dense)(x))


@each_network
def test_dual_numbers_pass(build, shape):
    sparse, dense = both(build)
    x, direction = torch.randn(shape), torch.randn(shape)
    with forward_ad.dual_level():
        ours, theirs = (forward_ad.unpack_dual(net(forward_ad.make_dual(x, direction))) for net in (sparse, dense))
    torch.testing.assert_close(tuple(ours), tuple(theirs))


def test_tangents_of_weights_pass():
    sparse, dense = both(NETWORKS["linear"][0])
    x, values = torch.randn(5, 6), dict(sparse.named_parameters())
    tangents = {name: torch.randn_like(value) for name, value in values.items()}
    _, ours = torch.func.jvp(lambda v: torch.func.functional_call(sparse, v, (x,)), (values,), (tangents,))
    moved = copy.deepcopy(sparse)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter.copy_(tangents[name])
    _, theirs = torch.func.jvp(
        lambda v: torch.func.functional_call(dense, v, (x,)),
        (dict(dense.named_parameters()),),
        (dict(regrow.densify(moved).named_parameters()),),
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("growth", [regrow.growth.exact(), regrow.growth.candidates(2, 2)], ids=["exact", "candidates"])
def test_tangents_pass_while_growth_gathers(growth):
    sparse, dense = both(NETWORKS["linear"][0])
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1, momentum=0.9)
    recipe = regrow.sparse_momentum(every=2, steps=8)
    recipe = dataclasses.replace(recipe, growth=growth)
    regrow.TopologyUpdater(sparse, optimizer, recipe)
    for _ in range(2):
        optimizer.step()  # the third carries out an update: growth looks in the second and the third
    assert sparse[0].covered is not None
    x, direction = torch.randn(5, 6), torch.randn(5, 6)
    torch.testing.assert_close(torch.func.jvp(sparse, (x,), (direction,)), torch.func.jvp(dense, (x,), (direction,)))
