"""Batches of no samples, also while growth gathers, and planes beyond all memory: they never end the process."""

import pytest
import torch
from torch import nn

import regrow
from cases import each_storage

LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (0, 4)),
    "linear on a sequence": (lambda: nn.Linear(4, 3), (2, 0, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 3, 3), (0, 4, 5)),
    "conv2d 1x1": (lambda: nn.Conv2d(4, 3, 1), (0, 4, 5, 5)),
    "conv2d 3x3": (lambda: nn.Conv2d(4, 3, 3, stride=2), (0, 4, 5, 5)),
}
GROWTHS = [regrow.growth.exact(), regrow.growth.window(3), regrow.growth.candidates(3, 2)]


@each_storage
@pytest.mark.parametrize("growth", GROWTHS, ids=["exact", "window", "candidates"])
@pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_batches_without_samples_are_steps_like_others(build, shape, growth, storage):
    network = regrow.sparsify(nn.Sequential(build()), 0.5, backend=storage)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    topology = regrow.TopologyUpdater(network, optimizer, regrow.sparse_momentum(every=2, steps=20, growth=growth))
    nonzeros = regrow.summary(network).nonzeros
    full = tuple(size or 3 for size in shape)
    for sizes in (shape, full, shape, shape, full, shape, shape, full):
        optimizer.zero_grad()
        x = torch.randn(sizes, requires_grad=True)
        network(x).sum().backward()
        assert x.grad is not None
        optimizer.step()
    assert topology.step == 8
    assert regrow.summary(network).nonzeros == nonzeros
    assert all(parameter.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
@pytest.mark.parametrize("padding", [1 << 20, 1 << 31, 1 << 40, 1 << 62])
def test_a_huge_padding_is_an_error_as_in_pytorch(kind, padding):
    sides = 1 if kind is nn.Conv1d else 2
    if kind is nn.Conv1d and padding == 1 << 20:
        padding = 1 << 42
    network = regrow.sparsify(nn.Sequential(kind(4, 3, 3, padding=padding)), 0.5, backend="cpu")
    with pytest.raises((ValueError, RuntimeError, MemoryError)):
        network(torch.randn(2, 4, *[5] * sides))
