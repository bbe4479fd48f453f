"""What a mean over a few seeds says: its standard error and the interval in which the true mean lies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

__all__ = ["Interval", "differences", "interval"]


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
    def deviation(self) -> float:
        """Standard deviation of the values; NaN for one seed."""
        return float(self.error * self.count**0.5)

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval; NaN for one seed."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval; NaN for one seed."""
        return self.mean + self.half

    @property
    def holds_zero(self) -> bool:
        """Whether zero lies within the interval; true for one seed, which excludes nothing."""
        return not abs(self.mean) > self.half

    def text(self, digits: int = 2, *, spread: float | None = None, sign: str = "") -> str:
        """Return the mean ± its standard error, which one seed does not have.

        Args:
            digits: after the point.
            spread: what stands there instead of the standard error.
            sign: "+" writes the sign of a mean above zero too.

        Example:
            >>> interval([1.0, 2.0, 3.0]).text(), interval([1.0]).text(sign="+")
            ('2.00 ± 0.58', '+1.00')
        """
        shown = f"{self.mean:{sign}.{digits}f}"
        return shown if self.count == 1 else f"{shown} ± {self.error if spread is None else spread:.{digits}f}"

    def bounds(self, digits: int = 2) -> str:
        """Return the ends of the 95 % interval; nothing for one seed.

        Example:
            >>> interval([1.0, 2.0, 3.0]).bounds()
            '-0.48 to 4.48'
        """
        return f"{self.low:.{digits}f} to {self.high:.{digits}f}" if self.count > 1 else ""


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of some values with its 95 % interval, by Student's distribution.

    Raises:
        ValueError: if there is no value.

    Example:
        >>> found = interval([1.0, 2.0, 3.0])
        >>> found.mean, round(found.error, 3), round(found.half, 2), found.count
        (2.0, 0.577, 2.48, 3)
    """
    from scipy.special import stdtrit  # takes a moment to import

    if not values:
        raise ValueError("the mean of no value: give at least one")
    count = len(values)
    if count == 1:
        return Interval(values[0], math.nan, math.nan, 1)
    error = stdev(values) / count**0.5
    return Interval(mean(values), error, float(stdtrit(count - 1, 0.975)) * error, count)


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
