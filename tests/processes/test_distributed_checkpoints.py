"""Checkpoints of PyTorch's distributed kind: other numbers of processes, fresh models of another topology."""

import pytest
import torch
from together import STEPS, Training, course
from torch.distributed import checkpoint

import regrow

BEFORE = 3  # steps, so that an update is past and a window is open


def parts(training):
    return {"model": training.model, "optimizer": training.optimizer, "topology": training.topology}


def save(training, folder):
    state = {name: part.state_dict() for name, part in parts(training).items()}
    checkpoint.save(state, checkpoint_id=folder)


def load(training, folder):
    state = regrow.processes.read_checkpoint(folder)
    for name, part in parts(training).items():
        part.load_state_dict(state[name])


def saved(rank, size, folder, **settings):
    training = Training(rank, size, **settings)
    for step in range(BEFORE):
        training.step(step)
    save(training, folder)
    return True


def loaded(rank, size, folder, **settings):
    """Go on in a fresh model, of other positions; return positions and weights at the end."""
    training = Training(rank, size, seed=5, **settings)
    load(training, folder)
    for step in range(BEFORE, STEPS):
        training.step(step)
    return training.positions(), training.weights()


CASES = [
    {"storage": "cpu", "growth": "exact"},
    {"storage": "masked", "growth": "window"},
    {"storage": "cpu", "growth": "candidates", "optimizer": "adam"},
    {"storage": "masked", "method": "top-kast", "settings": {"density": 0.25, "backward_density": 0.5}},
]


@pytest.mark.parametrize("settings", CASES, ids=lambda case: f"{case['storage']}-{case.get('growth', 'rule')}")
def test_a_checkpoint_loads_into_fresh_models_of_one_process_and_of_two(pair, tmp_path, settings):
    two, one = str(tmp_path / "two"), str(tmp_path / "one")
    pair(saved, two, **settings)
    saved(0, 1, one, **settings)
    positions, weights = course(0, 1, **settings)[-1]
    for found_positions, found in (
        loaded(0, 1, two, **settings),
        *pair(loaded, one, **settings),
        *pair(loaded, two, **settings),
    ):
        assert found_positions == positions
        for name, numbers in weights.items():
            torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(numbers), rtol=1e-9, atol=1e-12)


def test_what_is_read_is_what_was_written(tmp_path):
    state = {"a": torch.arange(3), "list": [torch.ones(2), {"x": 1}], "state": {0: {"step": 2.0}, 3: None}, "text": "b"}
    checkpoint.save(state, checkpoint_id=str(tmp_path))
    found = regrow.processes.read_checkpoint(tmp_path)
    assert torch.equal(found.pop("a"), state.pop("a"))
    assert torch.equal(found["list"].pop(0), state["list"].pop(0))
    assert found == state
