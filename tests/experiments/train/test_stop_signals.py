"""Ctrl-C and SIGTERM: the step is finished, the run saved, and the message's own command goes on with it."""

import os
import select
import shlex
import signal
import sys
import time

import pytest
from data.made import make_folder
from runs import assert_same_run, child, command, refused, tiny

from regrow.experiments.cli import app
from regrow.experiments.train.checkpoint import list_checkpoints
from regrow.experiments.train.interrupt import count_repeats_once
from regrow.experiments.train.loop import train


class Command:
    """A command in a process of its own; all that it and its children write is kept."""

    def __init__(self, *arguments):
        self._output, end = os.pipe()
        self.process = child(self._run, [str(argument) for argument in arguments], end)
        os.close(end)

    @staticmethod
    def _run(arguments, end):
        os.dup2(end, 1)
        os.dup2(end, 2)
        os.close(end)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        app(arguments)

    def stop(self, number):
        """Send a signal; return the exit status, and the output once no process is left that could write."""
        os.kill(self.process.pid, number)
        output = b""
        while select.select([self._output], [], [], 300)[0] and (piece := os.read(self._output, 1000)):
            output += piece
        self.process.join(60)
        assert not self.process.is_alive(), output
        return self.process.exitcode, output.decode()


def wait_for(ready, process, seconds=300):
    """Wait until `ready()`, and fail if the process ends before."""
    end = time.monotonic() + seconds
    while not ready():
        assert process.is_alive(), "the process ended by itself"
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


INTERRUPTED = pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)


@pytest.mark.parametrize(("number", "status"), [INTERRUPTED, (signal.SIGTERM, 143)])
def test_the_message_names_the_command_that_goes_on(tmp_path, number, status):
    out = tmp_path / "a run"  # a name that has to be quoted
    arguments = ["train", "digits-mlp", "--epochs", "24", "--seed", "3", "--out", str(out), "--set", "batch_size=64"]
    training = Command(*arguments)
    wait_for((out / "metrics.jsonl").exists, training.process)
    time.sleep(0.05)
    code, message = training.stop(number)
    assert code == status
    *epochs, message = message.splitlines()
    assert all(line.startswith("epoch ") for line in epochs)
    assert message.startswith("regrow: stopped after step ")
    assert len(list_checkpoints(out / "checkpoints")) == 1
    again = shlex.split(message.split("go on with: ")[1])
    assert again[0] == "regrow"
    assert command(*again[1:]).exit_code == 0

    assert command(*arguments, "--out", tmp_path / "whole").exit_code == 0
    assert_same_run(out, tmp_path / "whole")


def test_the_message_repeats_where_the_data_are(tmp_path, monkeypatch):
    monkeypatch.setenv("REGROW_DATA", str(tmp_path))
    monkeypatch.setattr(
        "regrow.experiments.train.progress.Lines.step", lambda self, run: signal.raise_signal(signal.SIGTERM)
    )
    result = command("train", "digits-mlp", "--out", tmp_path / "run")
    assert f"--resume --data {tmp_path}" in refused(result, "stopped after step 1 of 1170", status=143)


def test_a_second_signal_acts_as_usual(tmp_path):
    process = child(train, tiny(epochs=10**6), tmp_path, reporters=(_Stuck(),))
    wait_for((tmp_path / "metrics.jsonl").exists, process)
    time.sleep(0.2)
    process.terminate()
    process.join(0.5)
    assert process.is_alive()  # it waits for the step
    process.terminate()
    process.join(60)
    assert process.exitcode == -signal.SIGTERM


def test_a_process_of_a_study_takes_a_signal_that_comes_twice_as_one(tmp_path):
    """As when a group is stopped: the system signals each process, and the parent its workers."""
    process = child(_train_patiently, tmp_path)
    wait_for((tmp_path / "metrics.jsonl").exists, process)
    for _ in range(3):
        process.terminate()
        time.sleep(0.1)
    process.join(60)
    assert process.exitcode == 1  # by the error that says where it stopped
    assert len(list_checkpoints(tmp_path / "checkpoints")) == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_late_second_signal_acts_as_usual_there_too(tmp_path):
    process = child(_train_patiently, tmp_path, 0.2, (_Stuck(),))
    wait_for((tmp_path / "metrics.jsonl").exists, process)
    time.sleep(0.2)
    process.terminate()
    time.sleep(0.5)
    assert process.is_alive()
    process.terminate()
    process.join(60)
    assert process.exitcode == -signal.SIGTERM


def _train_patiently(out, seconds=10.0, reporters=None):
    count_repeats_once(seconds)
    train(tiny(epochs=10**6), out, reporters=reporters or (_Slow(),))


class _Slow:
    """A reporter that makes steps take longer than the pause between the signals."""

    def start(self, run): ...

    def stop(self): ...

    def step(self, run):
        time.sleep(1)


class _Stuck:
    """A reporter that makes a step last for ever."""

    def start(self, run): ...

    def stop(self): ...

    def step(self, run):
        while True:
            time.sleep(0.01)


class _GroupCommand(Command):
    """A command with a process group of its own, which gets the signal whole."""

    @staticmethod
    def _run(arguments, end):
        os.setpgid(0, 0)
        Command._run(arguments, end)

    def stop(self, number):
        os.killpg(self.process.pid, number)
        return super().stop(0)


@pytest.mark.parametrize(("number", "status"), [INTERRUPTED, (signal.SIGTERM, 143)])
@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_processes_that_decode_images_outlive_a_signal_to_all(tmp_path, monkeypatch, number, status, pause):
    make_folder(tmp_path / "imagenet")
    monkeypatch.setattr("regrow.experiments.data.cache.folder", lambda: tmp_path / "cache")
    settings = ("data=imagenet", "valid_samples=0", "image_size=16", "workers=2", "batch_size=2", "device=cpu")
    options = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "run"
    training = _GroupCommand(
        "train", "digits-mlp", "--epochs", 100_000, "--data", tmp_path, "--out", out, "--density", 0.2, *options
    )
    wait_for(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text(), training.process)
    time.sleep(pause)
    code, message = training.stop(number)
    *epochs, last = message.splitlines()
    assert code == status, message
    assert all(line.startswith("epoch ") for line in epochs), message
    assert last.startswith("regrow: stopped after step ")
    assert list_checkpoints(out / "checkpoints")


KILLED = pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.slow)
SAYS = "regrow: stopped: finished runs are kept, unfinished ones saved; the same command goes on with it\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), KILLED])
@pytest.mark.slow
def test_a_study_takes_its_processes_with_it(tmp_path, number, status):
    grid = ("--methods", "set", "--densities", "0.1,0.2,0.3", "--seeds", 2, "--epochs", 100_000)
    study = Command("study", "methods", "digits-mlp", *grid, "--jobs", 2, "--out", tmp_path)
    runs = [tmp_path / f"set-{density}-seed0" for density in ("0.1", "0.2")]
    wait_for(lambda: all((run / "metrics.jsonl").exists() for run in runs), study.process)
    code, message = study.stop(number)
    assert code == status
    assert sorted(tmp_path.iterdir()) == runs  # no other run was started
    if number == signal.SIGTERM:
        assert message == SAYS
        assert all(list_checkpoints(run / "checkpoints") for run in runs)


@pytest.mark.parametrize(("number", "status"), [INTERRUPTED, (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_of_a_study_saves_every_run(tmp_path, number, status):
    grid = ("--methods", "set", "--densities", "0.1,0.2,0.3", "--seeds", 2, "--epochs", 100_000)
    study = _GroupCommand("study", "methods", "digits-mlp", *grid, "--jobs", 2, "--out", tmp_path)
    runs = [tmp_path / f"set-{density}-seed0" for density in ("0.1", "0.2")]
    wait_for(lambda: all((run / "metrics.jsonl").exists() for run in runs), study.process)
    code, message = study.stop(number)
    assert (code, message) == (status, SAYS)
    assert sorted(tmp_path.iterdir()) == runs
    assert all(list_checkpoints(run / "checkpoints") for run in runs)
    assert not list(tmp_path.rglob("*.tmp"))
