"""Measuring in turn: what is compared runs one after the other in every round, in an order that turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["FEWEST_ROUNDS", "seconds_of", "take_turns", "turns"]

FEWEST_ROUNDS = 3


def turns(names: Sequence[str], rounds: int, seconds: float = float("inf")) -> Iterator[list[str]]:
    """Yield the order of each round: every name comes first in turn.

    Args:
        names: what takes turns.
        rounds: how many rounds at most.
        seconds: no new round begins after so many, once there were three.

    Example:
        >>> list(turns(["dense", "sparse"], 3))
        [['dense', 'sparse'], ['sparse', 'dense'], ['dense', 'sparse']]
    """
    start = time.perf_counter()
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.perf_counter() - start > seconds:
            return
        first = number % len(names)
        yield [*names[first:], *names[:first]]


def take_turns(steps: Mapping[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Take a step of each in turn, round after round; return milliseconds.

    Args:
        steps: for each name what takes a step; each takes one before the first round.
        rounds: how many rounds at most.
        seconds: no new round begins after so many, once there were three.
    """
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for order in turns(list(steps), rounds, seconds):
        for name in order:
            times[name].append(seconds_of(steps[name]) * 1e3)
    return times


def seconds_of(run: Callable[[], object]) -> float:
    """Run something and return the wall time that it took."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
