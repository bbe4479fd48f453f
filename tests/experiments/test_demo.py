"""The demo: both networks are trained and set side by side, and a step is timed where there are kernels."""

from dataclasses import replace

import pytest
import torch
from runs import command, tiny

from regrow.experiments import demo
from regrow.experiments.bench.steps import ratio as measuring
from regrow.experiments.bench.steps.ratio import step_ratio
from regrow.experiments.errors import WrongResultError
from regrow.experiments.train.config import override
from regrow.experiments.train.presets import preset

SMALL = tiny(density=0.3, batch_size=16, growth="window:3")
SENTENCE = "one training step of mlp: "


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(demo, "_base", lambda root, console: override(preset("digits-mlp"), {"epochs": 1}))
    monkeypatch.setattr(demo, "_WIDE", SMALL)


def test_the_demo_trains_both_and_times_steps(tmp_path):
    done = command("demo", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "test accuracy" in done.stdout
    assert (tmp_path / "demo.png").exists()
    assert SENTENCE in done.stdout
    assert "sparse at 30% (growth window:3, topology updates included)" in done.stdout
    assert "1 thread;" in done.stdout
    again = command("demo", "--out", tmp_path, "--no-speed")
    assert again.exit_code == 0, again.output
    assert SENTENCE not in again.stdout


def test_without_kernels_it_says_so_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("regrow.ops.native._kernels", None)
    done = command("demo", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "training steps are not timed here: regrow was installed without its compiled kernels" in done.stdout
    assert SENTENCE not in done.stdout


def test_a_network_that_computes_something_else_is_no_success(tmp_path, monkeypatch):
    def wrong(*_):
        raise WrongResultError("another loss")

    monkeypatch.setattr(measuring, "check", wrong)
    done = command("demo", "--out", tmp_path)
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (1, "regrow: another loss")
    assert "test accuracy" in done.stdout


def test_where_time_is_short_there_are_three_rounds_without_updates():
    found = step_ratio(SMALL, seconds=0)
    assert (found.rounds, found.updates, found.threads) == (3, False, torch.get_num_threads())
    assert found.ratio.low <= found.ratio.median <= found.ratio.high
    assert "topology updates left out" in demo._sentence(SMALL, found)


def test_with_time_updates_take_their_share(monkeypatch):
    steps = []
    cost, turns = measuring.update_cost, measuring.take_turns

    def note(training, config):
        steps.append(training.topology.step)
        return replace(cost(training, config), share=0.5)

    def known(contenders, rounds, seconds):
        return {
            name: [{measuring.DENSE: 0.4, measuring.SPARSE: 0.1}[name]] * len(times)
            for name, times in turns(contenders, rounds, seconds).items()
        }

    monkeypatch.setattr(measuring, "update_cost", note)
    monkeypatch.setattr(measuring, "take_turns", known)
    found = step_ratio(SMALL)
    assert (found.rounds, found.updates) == (9, True)
    assert steps[0] > 9  # an update and its window came before the rounds
    # half of the time is updates: a step of 0.1 seconds takes 0.2
    assert (found.dense, found.sparse, found.ratio.median) == pytest.approx((0.4, 0.2, 2.0))
