"""Schedules: plain functions of the step, the number of optimizer steps taken so far (0 before the first).

A value schedule maps a step to a number (a prune rate, a density); a timing maps a step to whether an update
is due after it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping

__all__ = [
    "Schedule",
    "Timing",
    "at",
    "constant",
    "cosine",
    "cubic",
    "every",
    "falling",
    "inverse_power",
    "linear",
    "never",
    "span",
    "stages",
]

Schedule = Callable[[int], float]
Timing = Callable[[int], bool]


def constant(value: float) -> Schedule:
    """Return `value` at every step.

    Example:
        >>> constant(0.3)(1000)
        0.3
    """
    return lambda step: value


def cosine(start: float, steps: int, end: float = 0.0) -> Schedule:
    """Go from `start` at step 0 to `end` at step `steps` along half a cosine, and stay there.

    Example:
        >>> rate = cosine(0.5, steps=100)
        >>> rate(0), rate(50), rate(100), rate(200)
        (0.5, 0.25, 0.0, 0.0)
    """
    _check_steps(steps)
    return lambda step: end + (start - end) * (1 + math.cos(math.pi * _progress(step, 0, steps))) / 2


def linear(start: float, steps: int, end: float = 0.0) -> Schedule:
    """Go from `start` at step 0 to `end` at step `steps` in a straight line, and stay there.

    Example:
        >>> linear(0.5, steps=100)(50)
        0.25
    """
    return inverse_power(start, steps, power=1.0, end=end)


def inverse_power(start: float, steps: int, power: float = 3.0, end: float = 0.0) -> Schedule:
    """Go from `start` to `end` as `(1 - step / steps) ** power` (RigL, arXiv:1911.11134, appendix G).

    Example:
        >>> inverse_power(0.8, steps=100, power=3)(50)
        0.1
    """
    _check_steps(steps)
    return lambda step: end + (start - end) * (1 - _progress(step, 0, steps)) ** power


def cubic(start: float, end: float, begin: int, until: int) -> Schedule:
    """Hold `start` up to step `begin`, then go to `end` at step `until`, fast first, as a cubic.

    The density schedule of gradual magnitude pruning (Zhu & Gupta 2017, arXiv:1710.01878).

    Example:
        >>> density = cubic(1.0, 0.5, begin=0, until=100)
        >>> density(0), density(50), density(100)
        (1.0, 0.5625, 0.5)
    """
    _check_steps(until - begin)
    return lambda step: end + (start - end) * (1 - _progress(step, begin, until)) ** 3


def falling(start: float, end: float, begin: int, until: int) -> Schedule:
    """Return a density that falls along a cubic, for a training from many weights to few.

    Args:
        start: density up to step `begin`.
        end: density from step `until` on.
        begin: the step after which it falls.
        until: the step at which it has fallen.

    Raises:
        ValueError: if the density would rise, or is not in (0, 1].

    Example:
        >>> falling(1.0, 0.5, begin=100, until=200)(150)
        0.5625
    """
    if not 0 < end <= start <= 1:
        raise ValueError(f"a density cannot fall from {start} to {end}: give 0 < density <= start <= 1")
    return cubic(start, end, begin, until)


def span(every: int, steps: int, begin: float, end: float) -> tuple[int, int]:
    """Return the multiples of an interval at or before two parts of a training, at least one interval apart.

    Args:
        every: the interval in steps.
        steps: steps of the whole training.
        begin: the first part, in [0, 1).
        end: the second part.

    Raises:
        ValueError: if the second is not within the training.

    Example:
        >>> span(100, 1000, 0.25, 0.75)
        (200, 700)
    """
    if every < 1 or not 0 <= begin < end <= 1:
        raise ValueError(
            f"no updates every {every} steps from {begin} to {end} of a training: give 0 <= begin < end <= 1"
        )
    first = int(begin * steps / every) * every
    last = max(int(end * steps / every) * every, first + every)
    if last >= steps:
        raise ValueError(
            f"an update every {every} steps comes too late in a training of {steps}: update more often, or train longer"
        )
    return first, last


def stages(values: Mapping[int, float]) -> Schedule:
    """Hold each value from its step on, until the next; the first holds from the start.

    Example:
        >>> rate = stages({0: 0.2, 90: 0.1})
        >>> rate(0), rate(89), rate(90), rate(200)
        (0.2, 0.2, 0.1, 0.1)
    """
    if not values:
        raise ValueError("a schedule in stages needs a value: give one for step 0")
    begins = sorted(values)
    return lambda step: values[begins[max(bisect_right(begins, step) - 1, 0)]]


def at(steps: Collection[int]) -> Timing:
    """Be due after the steps that are named.

    Example:
        >>> due = at({100, 250})
        >>> [step for step in range(0, 401, 50) if due(step)]
        [100, 250]
    """
    named = frozenset(steps)
    return lambda step: step in named


def every(interval: int, start: int = 0, until: int | None = None) -> Timing:
    """Be due after each `interval` steps, counted from step 0, where `start < step < until`.

    The end is left out: what grows at the last step would never be trained.

    Args:
        interval: steps between updates, at least 1.
        start: no update at or before this step.
        until: no update at or after this step; None means no end.

    Raises:
        ValueError: if `interval` is less than 1.

    Example:
        >>> due = every(100, until=300)
        >>> [step for step in range(0, 401, 50) if due(step)]
        [100, 200]
    """
    if interval < 1:
        raise ValueError(f"an update every {interval} steps is not possible: the interval is at least 1")
    return lambda step: step > start and (until is None or step < until) and step % interval == 0


def never() -> Timing:
    """Be due at no step: the topology stays as it is."""
    return lambda step: False


def _progress(step: int, begin: int, until: int) -> float:
    return min(max((step - begin) / (until - begin), 0.0), 1.0)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a schedule over {steps} steps is not possible: give the total number of steps")
