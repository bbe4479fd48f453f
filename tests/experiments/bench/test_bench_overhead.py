"""What masks cost: checked before it is timed, and the page names its command."""

from dataclasses import replace

import pytest
import torch
from runs import command

from regrow.experiments.bench.steps import overhead
from regrow.experiments.errors import WrongResultError


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(overhead, "_SAMPLE_SECONDS", 0.0)


def test_the_command_measures_and_writes_its_page(tmp_path):
    page = tmp_path / "overhead.md"
    done = command("bench", "overhead", "digits-mlp", "--rounds", 2, "--markdown", page)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "ratio with an update an epoch" in done.stdout
    lines = page.read_text().splitlines()
    assert lines[0] == "# Overhead of masked sparse training"
    assert lines[-1].startswith("| mlp | ")
    assert lines[-1].count("|") == 6


def test_another_step_than_the_dense_one_is_not_timed(monkeypatch):
    real = overhead.sparse_training

    def wrong(config, model, batches):
        training = real(config, model, batches)

        def step():
            loss = training.step()
            with torch.no_grad():
                next(model.parameters()).mul_(1.001)
            return loss

        return replace(training, step=step)

    monkeypatch.setattr(overhead, "sparse_training", wrong)
    with pytest.raises(WrongResultError, match="not timed"):
        overhead.measure("digits-mlp", 2)


def test_a_preset_that_does_not_exist_is_one_line():
    assert "there is no preset 'magic'" in command("bench", "overhead", "magic").stderr
