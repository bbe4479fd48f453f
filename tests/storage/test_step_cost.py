"""What the library adds to an optimizer step: one operation in place, nothing allocated, nothing waited for."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import regrow
from cases import model, optimization
from regrow.storage import sparse_weights
from regrow.storage.masked import enforce


class Operations(TorchDispatchMode):
    """Note every operation that is carried out."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not str(function).startswith("profiler."):
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def steps(with_updater):
    network = regrow.sparsify(model("mlp").build(), 0.3, backend="masked")
    settings = optimization("sgd-nesterov").settings
    optimizer = torch.optim.SGD(network.parameters(), **settings)
    if with_updater:
        regrow.TopologyUpdater(network, optimizer, regrow.sparse_momentum(every=1000, steps=10_000))
    network(model("mlp").inputs(seed=0)).sum().backward()
    optimizer.step()
    with Operations() as operations:
        optimizer.step()
    return operations.names


def test_a_step_without_update_is_one_operation_more_for_all_layers():
    alone, together = steps(with_updater=False), steps(with_updater=True)
    assert together == [*alone, "aten._foreach_mul_.List"]


@pytest.mark.parametrize("name", ["mlp", "conv2d"])
def test_enforcing_the_masks_allocates_nothing(name):
    weights = list(sparse_weights(regrow.sparsify(model(name).build(), 0.3, backend="masked")).values())
    enforce(weights)
    assert allocations(lambda: enforce(weights)) == 0
    assert allocations(lambda: [weight.weight * weight.factor() for weight in weights]) == len(weights)


def allocations(work):
    with torch.profiler.profile(profile_memory=True) as profile:
        kept = work()
    del kept
    return sum(event.self_cpu_memory_usage > 0 for event in profile.events())


def test_a_full_mask_costs_nothing_until_a_weight_is_dropped():
    layer = nn.Linear(4, 3)
    regrow.sparsify(layer, 1.0, backend="masked")
    (weight,) = sparse_weights(layer).values()
    assert weight.factor() is None
    layer.weight_mask[0, 1] = False
    enforce([weight])
    assert weight.factor() is not None
    assert layer.weight[0, 1] == 0
