"""Schedules: plain functions of the step, the number of optimizer steps taken so far (0 before the first).

A value schedule maps a step to a number (a prune rate, a density); a timing maps a step to whether an update
is due after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = [
    "Schedule",
    "Timing",
    "constant",
    "cosine",
    "cubic",
    "every",
    "inverse_power",
    "linear",
    "never",
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
