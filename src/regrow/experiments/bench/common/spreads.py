"""Median and quartiles of measurements, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

__all__ = ["Spread", "ratios", "short", "spread"]


def short(number: float) -> str:
    """Return a number with about three digits.

    Example:
        >>> short(1.234), short(12.34), short(1234.5)
        ('1.23', '12.3', '1234')
    """
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of several measurements."""

    median: float
    low: float
    high: float

    def text(self, form: Callable[[float], str] = short, *, unit: str = "", to: str = "-") -> str:
        """Return the median with the quartiles in brackets.

        Args:
            form: writes a number.
            unit: what follows the median.
            to: what stands between the quartiles.

        Example:
            >>> Spread(2.0, 1.5, 2.25).text(unit="x")
            '2.00x (1.50-2.25)'
        """
        return f"{form(self.median)}{unit} ({form(self.low)}{to}{form(self.high)})"


def spread(numbers: Sequence[float]) -> Spread:
    """Return median and quartiles.

    Example:
        >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
        Spread(median=3.0, low=2.0, high=4.0)
    """
    if len(numbers) == 1:
        return Spread(numbers[0], numbers[0], numbers[0])
    low, _, high = quantiles(numbers, n=4, method="inclusive")
    return Spread(median(numbers), low, high)


def ratios(times: Sequence[float], reference: Sequence[float], factor: float = 1.0) -> Spread:
    """Return the spread of the ratios, round by round.

    Args:
        times: a time for each round.
        reference: what they are divided by, in the same rounds.
        factor: by how much longer the reference is taken to be.

    Example:
        >>> ratios([2.0, 4.0], [1.0, 1.0]).median
        3.0
    """
    return spread([a / (b * factor) for a, b in zip(times, reference, strict=True)])
