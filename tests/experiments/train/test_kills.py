"""A soak: a run that is killed again and again, wherever it is, is bit for bit the run that was not."""

import copy
import random
import signal
import time
from multiprocessing import get_context

import pytest
from kills import PLACES, train_until_killed, watch
from runs import ALWAYS, Stopper, assert_same_run, child, same, timeless

from regrow.experiments.train.checkpoint import load_latest
from regrow.experiments.train.loop import train

ANY = "any moment"
SECONDS = 300  # for a process to come to the place where it ends


class Recorder(Stopper):
    """A reporter that keeps the state after each step."""

    def __init__(self):
        super().__init__(None, lambda _: False)
        self.states = {}

    def step(self, run):
        self.states[run.step] = timeless(copy.deepcopy(run.state_dict()))


def uninterrupted(config, out, places):
    """Train without a stop; return the state after each step, and the fewest events of a call of each place."""
    with pytest.MonkeyPatch.context() as patch:
        for name in places:
            patch.setattr(PLACES[name].owner, PLACES[name].name, getattr(PLACES[name].owner, PLACES[name].name))
        counts = {name: watch(PLACES[name]) for name in places}
        recorder = Recorder()
        train(config, out, reporters=(recorder,))
    return recorder.states, {name: min(each) for name, each in counts.items()}


def kill_once(place, drawn, fewest, *args, **kwargs):
    """Start a process that trains, and kill it in a place that a generator draws; say where that was."""
    began = get_context("fork").Event()
    call, event = drawn.randint(1, 3), drawn.randint(1, fewest.get(place, 1))
    named = None if place == ANY else place
    process = child(train_until_killed, named, call, event, began, *args, **kwargs)
    if named is None:
        assert began.wait(SECONDS)
        time.sleep(drawn.uniform(0, 0.02))
        process.kill()
    process.join(SECONDS)
    where = f"{place}, call {call}, event {event}"
    assert process.exitcode == -signal.SIGKILL, where
    return where


RUNS = {
    "dense": {"method": "dense"},
    "set, masked": {"method": "set", "backend": "masked"},
    "set, sparse": {"method": "set", "backend": "cpu"},
    "sparse momentum, masked": {"method": "sparse-momentum", "backend": "masked"},
    "sparse momentum, sparse": {"method": "sparse-momentum", "backend": "cpu", "growth": "window:3"},
}
SHORT = ("set, masked", "sparse momentum, sparse")


@pytest.mark.parametrize(
    ("run", "kills"),
    [(run, 5) for run in SHORT] + [pytest.param(run, 50, marks=pytest.mark.slow) for run in RUNS],
)
def test_a_run_killed_anywhere_goes_on_to_the_bit(small_runs, tmp_path, run, kills):
    """What is killed, and where, is drawn from numbers: a kill that loses something comes again in the next run.

    Only the kills at any moment are by the clock. After a failure the folder is as the kill left it.
    """
    config = small_runs(epochs=kills, save_every_seconds=ALWAYS, **RUNS[run])
    out, whole, drawn = tmp_path / "killed", tmp_path / "whole", random.Random(run)
    places = [name for name in PLACES if name != "update" or run != "dense"]
    states, fewest = uninterrupted(config, whole, places)
    plan = [[*places, ANY][number % (len(places) + 1)] for number in range(kills)]
    drawn.shuffle(plan)
    for place in plan:
        where = kill_once(place, drawn, fewest, config, out, resume=(out / "config.yaml").exists())
        state, warnings = load_latest(out / "checkpoints")
        assert not warnings, where
        assert state is None or same(timeless(state), states[state["step"]]), where
    assert not (out / "result.json").exists()
    train(config, out, resume=(out / "config.yaml").exists())
    assert_same_run(out, whole)
