"""Clipping by norm in two processes: one norm, that of one process, and in both storages what growth asks for."""

import pytest
import torch
from test_sharded import sharded
from together import STEPS, Training
from torch import nn

from regrow.processes import send_active

LIMIT = 0.05


def clipped(rank, size, packs=False, **settings):
    """Return the norm before clipping, positions and weights of each step."""
    training, states = Training(rank, size, **settings), []
    if packs:
        send_active(training.network, training.topology)
    for step in range(STEPS):
        training.optimizer.zero_grad()
        training.loss(step).backward()
        norm = nn.utils.clip_grad_norm_(training.network.parameters(), LIMIT).item()
        training.optimizer.step()
        states.append((norm, training.positions(), training.weights()))
    return states


def assert_alike(some, others):
    """Assert that two trainings have equal positions, and norms and weights that are equal to rounding."""
    assert any(norm > 2 * LIMIT for norm, *_ in some)
    assert some[0][1] != some[-1][1]
    for (norm, positions, weights), (other_norm, other_positions, other_weights) in zip(some, others, strict=True):
        assert norm == pytest.approx(other_norm, rel=1e-9)
        assert positions == other_positions
        for name, numbers in weights.items():
            torch.testing.assert_close(torch.tensor(numbers), torch.tensor(other_weights[name]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("storage", ["masked", "cpu"])
@pytest.mark.parametrize("growth", ["exact", "window", "candidates"])
def test_the_norm_is_that_of_one_process(pair, storage, growth):
    first, second = pair(clipped, storage=storage, growth=growth)
    assert first == second
    assert_alike(first, clipped(0, 1, storage=storage, growth=growth))


@pytest.mark.parametrize(("growth", "packs"), [("exact", False), ("window", True)])
def test_the_norm_is_that_of_the_other_storage(pair, growth, packs):
    """Outside of a window sparse storage has active weights alone; so has masked storage where those alone travel."""
    sparse = pair(clipped, storage="cpu", growth=growth)[0]
    assert_alike(sparse, pair(clipped, packs=packs, storage="masked", growth=growth)[0])


@pytest.mark.parametrize("growth", ["default", "window"])
def test_the_norm_of_split_parameters_is_that_of_whole_ones(pair, growth):
    first, second = pair(sharded, method="sparse-momentum", growth=growth, optimizer="sgd", limit=LIMIT)
    assert first == second
    assert_alike(first, clipped(0, 1, storage="masked", growth=growth))
