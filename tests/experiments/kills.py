"""Kills of a run in chosen places: its process ends itself by SIGKILL at the n-th event within a function."""

import io
import os
import signal
import sys
from typing import Any, NamedTuple

import regrow
from regrow.experiments.train import loop
from regrow.experiments.train.run import Run

_FILE_OPERATIONS = frozenset({"open", "write", "flush", "fsync", "close", "replace", "unlink"})


class Place(NamedTuple):
    """A function in which to kill, and the names of the calls that count there; None for all."""

    owner: Any
    name: str
    only: frozenset[str] | None = None


PLACES = {
    "step": Place(Run, "train_step"),
    "update": Place(regrow.TopologyUpdater, "_carry_out"),
    "save": Place(loop, "_save"),
    "file": Place(loop, "save_checkpoint", _FILE_OPERATIONS),
}
"""A training step, with its update if it has one; an update; what a checkpoint holds made and written; its file."""


class Halves(io.BufferedRandom):
    """A file to which every write goes in two halves, the first of which reaches the disk before the second."""

    def write(self, content):
        half = len(content) // 2
        written = super().write(content[:half])
        self.flush()
        return written + super().write(content[half:])


def watch(place, call=None, event=None):
    """Count the events in every call of a function: calls and returns of Python's and of built-in functions.

    From the given call on, each of which has its events counted from 1, the process is killed at the given event.

    Returns:
        The events of each call, filled as they happen.
    """
    function, counts = getattr(place.owner, place.name), []

    def watched(*args, **kwargs):
        before = sys.getprofile()
        counts.append(0)

        def count(frame, what, argument):
            if before is not None:
                before(frame, what, argument)
            name = argument.__name__ if what.startswith("c_") else frame.f_code.co_name
            if place.only is None or name in place.only:
                counts[-1] += 1
                if call is not None and len(counts) >= call and counts[-1] == event:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        try:
            return function(*args, **kwargs)
        finally:
            sys.setprofile(before)

    setattr(place.owner, place.name, watched)
    return counts


def write_in_halves():
    """Let a write of a file that is replaced be cut in the middle, from now on in this process."""
    fdopen = os.fdopen

    def opened(descriptor, mode="r", *args, **kwargs):
        if mode == "w+b":
            return Halves(io.FileIO(descriptor, mode))
        return fdopen(descriptor, mode, *args, **kwargs)

    os.fdopen = opened


def train_until_killed(place, call, event, began, *args, **kwargs):
    """Train, and end in a place; with None for it tell that the first step begins, and let another process kill."""
    write_in_halves()
    if place is None:
        step = Run.train_step

        def told(run, *batch):
            began.set()
            return step(run, *batch)

        Run.train_step = told
    else:
        watch(PLACES[place], call, event)
    loop.train(*args, **kwargs)
