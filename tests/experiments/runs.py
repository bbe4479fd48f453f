"""Runs that take a second, how to interrupt them, and what must not depend on whether they were."""

import json
import os
from multiprocessing import get_context

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from regrow.experiments.cli import app
from regrow.experiments.errors import StoppedError
from regrow.experiments.train.checkpoint import list_checkpoints, load_checkpoint
from regrow.experiments.train.config import override
from regrow.experiments.train.loop import train
from regrow.experiments.train.presets import preset
from regrow.experiments.train.progress import Lines

METHODS = ("dense", "set", "sparse-momentum")  # set: its random growth is part of what a checkpoint holds
TIMES = ("seconds", "seconds_waiting")
ALWAYS = 1e-9  # seconds between checkpoints: one after every step


def tiny(**changes):
    """Settings of a run of 2 epochs with 10 steps each."""
    return override(preset("digits-mlp"), {"epochs": 2, "batch_size": 128, **changes})


def dropout_mlp(*, image_shape, classes):
    """Build a network that draws random numbers in training and has buffers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(), nn.Linear(24, classes)
    )


class Stopper(Lines):
    """A reporter that sends this process a signal after steps of the run."""

    def __init__(self, number, when):
        super().__init__(None)
        self.number, self.when = number, when

    def step(self, run):
        if self.when(run.step):
            os.kill(os.getpid(), self.number)

    def epoch(self, run, row): ...

    def warn(self, message): ...


def stop_after(config, out, step, number, **settings):
    """Train until a signal after a step stops it."""
    with pytest.raises(StoppedError):
        train(config, out, reporters=(Stopper(number, lambda now: now == step),), **settings)


def command(*arguments):
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def refused(result, *words, status=2):
    """Assert that a command said in one line on stderr what is wrong; returns the line."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("regrow: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")
    missing = [word for word in words if word not in result.stderr]
    assert not missing, result.stderr
    return result.stderr


def child(function, *arguments, **keywords):
    """Start a function in a copy of this process, which is quick and may be killed."""
    process = get_context("fork").Process(target=function, args=arguments, kwargs=keywords)
    process.start()
    return process


def metrics(out):
    """Return the lines of metrics.jsonl without the times."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def timeless(state):
    """Return the state of a run without the times."""
    config = {name: value for name, value in state["config"].items() if name != "save_every_seconds"}
    return {**{name: value for name, value in state.items() if name not in (*TIMES, "rows")}, "config": config}


def final_state(out):
    """Return all that the last checkpoint of a run holds, without the times."""
    return timeless(load_checkpoint(list_checkpoints(out / "checkpoints")[-1]))


def same(left, right):
    """Tell whether two nested structures are equal, tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right) and left.dtype == right.dtype
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def assert_same_run(out, reference):
    """Assert that two finished runs have the same weights, masks, state and metrics, and left nothing behind."""
    assert metrics(out) == metrics(reference)
    assert same(final_state(out), final_state(reference))
    timeless = [json.loads((folder / "result.json").read_text()) for folder in (out, reference)]
    for result in timeless:
        for name in ("seconds_train", "seconds_per_step", "seconds_waiting", "peak_memory_bytes"):
            del result[name]
    assert timeless[0] == timeless[1]
    assert not list(out.rglob("*.tmp"))
    assert len(list_checkpoints(out / "checkpoints")) <= 2
