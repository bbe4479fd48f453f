"""The rule beside what layers take on this machine: forward, backward and a step of SGD with momentum."""

import time
from statistics import median

import pytest
import torch
from torch import nn

import regrow
from regrow.convert.exchange import sparse_form
from regrow.ops.layout import batch_last
from regrow.storage import Storage, sparse_weights

pytest.importorskip("regrow._kernels")

# A layer that the rule stores sparsely may take so much of the dense one's time at most; one that it leaves dense must
# not take less than that in sparse storage.
MOST, LEAST = 1.15, 0.6
ROUNDS = 15
LAYERS = {
    "linear 1024": (nn.Linear(1024, 1024), (64, 1024)),
    "linear 784-300": (nn.Linear(784, 300), (64, 784)),
    "linear 100-10": (nn.Linear(100, 10), (64, 100)),
    "conv2d 128": (nn.Conv2d(128, 128, 3, padding=1), (32, 128, 8, 8)),
    "conv2d 64": (nn.Conv2d(64, 64, 3, padding=1), (32, 64, 16, 16)),
    "conv2d 256 1x1": (nn.Conv2d(256, 256, 1), (32, 256, 8, 8)),
    "conv1d 128": (nn.Conv1d(128, 128, 5, padding=2), (32, 128, 100)),
}


def step_of(layer, x, gradient):
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3, momentum=0.9, fused=True)

    def step():
        optimizer.zero_grad()
        layer(x).backward(gradient)
        optimizer.step()

    return step


def share_of_dense(layer, shape, density):
    """Return the sparse layer's time over the dense one's, by turns, each in the layout of its kind."""
    x = torch.randn(shape)
    gradient = torch.randn_like(layer(x))
    form = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    dense = step_of(layer, x.to(memory_format=form).requires_grad_(), gradient.to(memory_format=form))
    index = torch.randperm(layer.weight.numel())[: round(density * layer.weight.numel())].sort().values
    turned = (x, gradient) if isinstance(layer, nn.Linear) else (batch_last(x), batch_last(gradient))
    sparse = step_of(sparse_form(layer, index), turned[0].requires_grad_(), turned[1])
    dense(), sparse()
    ratios = []
    for number in range(ROUNDS):
        times = {}
        for step in (dense, sparse) if number % 2 else (sparse, dense):
            start = time.perf_counter()
            step()
            times[step] = time.perf_counter() - start
        ratios.append(times[sparse] / times[dense])
    return median(ratios)


def chosen(layer, density):
    """Return the storage of the layer among its like."""
    model = regrow.sparsify(nn.Sequential(layer), density)
    (weight,) = sparse_weights(model).values()
    return weight.storage


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.02, 0.1, 0.2, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("name", LAYERS)
def test_what_the_rule_chooses_is_not_the_slower(name, density):
    layer, shape = LAYERS[name]
    sparse = chosen(type(layer)(**_arguments(layer)), density) is Storage.SPARSE
    shares = []
    for _ in range(3):  # another process may spoil one measurement, not three
        shares.append(share_of_dense(layer, shape, density))
        if shares[-1] <= MOST if sparse else shares[-1] >= LEAST:
            return
    pytest.fail(f"{name} at {density}, {'sparse' if sparse else 'masked'} by the rule: sparse over dense {shares}")


def _arguments(layer):
    names = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "padding")
    return {name: getattr(layer, name) for name in names if hasattr(layer, name)}
