"""What a mean over a few seeds says: its standard error and the interval in which the true mean lies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, stdev

__all__ = ["Interval", "differences", "interval"]

# Half of the width in standard errors of an interval that holds the mean in 95 of 100 cases, by seeds less one
# (Student's distribution).
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Interval:
    """A mean and how far it can be trusted.

    Attributes:
        mean: the mean.
        error: its standard error; NaN for one seed, which says nothing of it.
        half: half of the width of the 95 % interval; NaN likewise.
        count: seeds.
    """

    mean: float
    error: float
    half: float
    count: int

    @property
    def holds_zero(self) -> bool:
        """Whether zero lies within the interval; true for one seed, which excludes nothing."""
        return not abs(self.mean) > self.half


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of some values with its 95 % interval, by Student's distribution.

    Raises:
        ValueError: if there is no value.

    Example:
        >>> found = interval([1.0, 2.0, 3.0])
        >>> found.mean, round(found.error, 3), round(found.half, 2), found.count
        (2.0, 0.577, 2.48, 3)
    """
    if not values:
        raise ValueError("the mean of no value: give at least one")
    count = len(values)
    if count == 1:
        return Interval(values[0], math.nan, math.nan, 1)
    error = stdev(values) / count**0.5
    factor = _STUDENT[count - 2] if count - 2 < len(_STUDENT) else NormalDist().inv_cdf(0.975)
    return Interval(mean(values), error, factor * error, count)


def differences(left: Mapping[int, float], right: Mapping[int, float]) -> Interval | None:
    """Return the mean difference of two sets of runs, seed by seed; None if they have no seed in common.

    Args:
        left: a value for each seed.
        right: what is taken from it.

    Example:
        >>> differences({0: 3.0, 1: 5.0}, {0: 1.0, 1: 3.0, 2: 9.0})
        Interval(mean=2.0, error=0.0, half=0.0, count=2)
    """
    common = [seed for seed in left if seed in right]
    return interval([left[seed] - right[seed] for seed in common]) if common else None
