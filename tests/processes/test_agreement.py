"""Where processes that train together no longer agree, all of them stop with an error that says in what."""

import pytest
import torch
from together import Training
from torch import distributed, nn

import regrow
from regrow.processes.agreement import add_up, differing, digest


def outcome(work):
    try:
        work()
    except RuntimeError as error:
        return str(error)
    return None


def begins_elsewhere(rank, size, storage):
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(10, 16), nn.Linear(16, 6)), 0.3, backend=storage, seed=rank)
    model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    topology = regrow.TopologyUpdater(model, optimizer, regrow.set(every=2, steps=8))
    message = outcome(lambda: model(torch.randn(4, 10)).sum().backward())
    topology.remove()
    return message


@pytest.mark.parametrize("storage", ["masked", "cpu"])
def test_other_masks_at_the_start_stop_all(pair, storage):
    for message in pair(begins_elsewhere, storage):
        assert "differ in '0.weight' (and in 1 more) before the first step, rank 1 from rank 0" in message
        assert "one seed of sparsify" in message


def other_seed(rank, size):
    training = Training(rank, size, method="set")
    training.topology.remove()
    training.topology = regrow.TopologyUpdater(
        training.network, training.optimizer, regrow.set(every=2, steps=8), seed=rank
    )
    return outcome(lambda: training.step(0))


def test_other_random_numbers_stop_all(pair):
    for message in pair(other_seed):
        assert "differ in 'generator' before the first step" in message
        assert "one seed" in message


def strays(rank, size, storage, method):
    """Add something to the gradient of one process after the mean is taken."""
    training = Training(rank, size, storage=storage, method=method)
    parameter = list(training.model.parameters())[2]

    def add(*_):
        parameter.grad.mul_(1 + rank)

    training.optimizer.register_step_pre_hook(add)
    for step in range(4):
        message = outcome(lambda step=step: training.step(step))
        if message:
            return step, message
    return None


@pytest.mark.parametrize("storage", ["masked", "cpu"])
def test_gradients_that_are_not_averaged_stop_all_at_the_next_update(pair, storage):
    for step, message in pair(strays, storage, "sparse-momentum"):
        assert step == 2, message  # the first update is due after the second step, and the third carries it out
        assert "after step 3, rank 1 from rank 0" in message
        assert "averaged over processes" in message


def by_hand_elsewhere(rank, size):
    model = regrow.sparsify(nn.Sequential(nn.Linear(10, 16)), 0.3, seed=rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    group = distributed.group.WORLD
    return outcome(lambda: regrow.TopologyUpdater(model, optimizer, regrow.static(), process_group=group))


def test_a_group_that_is_given_compares_at_once(pair):
    for message in pair(by_hand_elsewhere):
        assert "differ in '0.weight' before the first step" in message


def compared(rank, size):
    group, device = distributed.group.WORLD, torch.device("cpu")
    own = {"equal": 3, "other": digest(torch.tensor([rank])), "large": 2**62 + rank}
    return differing(group, device, own), add_up(group, device, [1.5, 2.0**51 + rank])


def test_numbers_are_compared_and_added_up_exactly(pair):
    for found, sums in pair(compared):
        assert found == {"other": [1], "large": [1]}
        assert sums == [3.0, 2.0**52 + 1]


def without_a_wrapper(rank, size):
    """Two trainings that have nothing to do with each other."""
    model = regrow.sparsify(nn.Sequential(nn.Linear(10, 16)), 0.3, seed=rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = regrow.TopologyUpdater(model, optimizer, regrow.set(every=2, steps=8), seed=rank)
    for _ in range(3 + rank):
        optimizer.zero_grad()
        model(torch.randn(4, 10)).sum().backward()
        optimizer.step()
    return topology.step


def test_trainings_beside_each_other_are_left_alone(pair):
    assert pair(without_a_wrapper) == [3, 4]
