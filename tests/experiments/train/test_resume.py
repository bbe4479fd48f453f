"""A run that was interrupted at any moment and goes on is, bit for bit, the run that was not."""

import os
import signal
from pathlib import Path

import pytest
from runs import METHODS, Stopper, assert_same_run, metrics, stop_after, tiny

from regrow.experiments.errors import StoppedError
from regrow.experiments.train.config import override
from regrow.experiments.train.loop import train

EACH_METHOD = pytest.mark.parametrize("method", METHODS)


@EACH_METHOD
@pytest.mark.parametrize("every", [1, 3, 10])
def test_stopped_after_every_few_steps(small_runs, tmp_path, method, every):
    config, out, stops = small_runs(method=method, save_every_seconds=60), tmp_path / "stopped", 0
    train(config, tmp_path / "whole")
    stopper = Stopper(signal.SIGTERM, lambda step: step % every == 0)
    while not (out / "result.json").exists():
        try:
            train(config, out, resume=stops > 0, reporters=(stopper,))
        except StoppedError:
            stops += 1
    assert stops == 20 // every
    assert_same_run(out, tmp_path / "whole")


@EACH_METHOD
@pytest.mark.parametrize("growth", ["exact", "window:4", "guided:6:2"])
@pytest.mark.parametrize("backend", ["masked", "cpu"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_stopped_with_every_storage_and_source_of_growth(tmp_path, method, growth, backend, optimizer):
    settings = {"method": method, "growth": growth, "backend": backend, "optimizer": optimizer, "learning_rate": 0.01}
    config, out, stops = tiny(**settings, update_every=0.5), tmp_path / "stopped", 0
    train(config, tmp_path / "whole")
    stopper = Stopper(signal.SIGTERM, lambda step: step % 3 == 0)
    while not (out / "result.json").exists():
        try:
            train(config, out, resume=stops > 0, reporters=(stopper,))
        except StoppedError:
            stops += 1
    assert stops == 6
    assert_same_run(out, tmp_path / "whole")


class Killed(BaseException):
    """The process ends here: nothing that would tidy up runs on it."""


@pytest.mark.parametrize("operations", [8, 9, 11, 14])  # with fewer, no run gets to its next checkpoint
def test_killed_within_the_writing_of_files(small_runs, tmp_path, monkeypatch, operations):
    config, out, left = small_runs(method="set"), tmp_path / "killed", [0]
    train(config, tmp_path / "whole")

    def counted(operation):
        def run(*arguments):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return operation(*arguments)

        return run

    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    while not (out / "result.json").exists():
        left[0] = operations
        try:
            train(config, out, resume=(out / "config.yaml").exists())
        except Killed:
            continue
    assert_same_run(out, tmp_path / "whole")


def test_a_finished_run_is_left_as_it_is(tmp_path):
    result = train(tiny(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert train(tiny(), tmp_path, resume=True) == result
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_metrics_beyond_the_last_checkpoint_are_made_again(tmp_path):
    stop_after(tiny(), tmp_path, 13, signal.SIGTERM)
    assert [row["epoch"] for row in metrics(tmp_path)] == [1]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2}\n')
    train(tiny(), tmp_path, resume=True)
    assert [row["epoch"] for row in metrics(tmp_path)] == [1, 2]


def test_different_seeds_give_different_runs(tmp_path):
    for seed in (0, 1):
        train(override(tiny(), {"seed": seed}), tmp_path / str(seed))
    assert metrics(tmp_path / "0") != metrics(tmp_path / "1")
