"""Two-way analysis of variance with interaction, of groups of any sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Effect", "two_way"]

_Values = NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """How much of the variance an effect explains.

    Attributes:
        squares: its sum of squares (type II: beside the other factor).
        freedom: its degrees of freedom.
        f: its mean square over that of the residuals; NaN for these.
        p: how likely a larger F is without the effect; NaN for the residuals.
        eta_squared: its part of the sum of all sums of squares; NaN for the residuals.
        omega_squared: the same without bias; NaN for the residuals.
    """

    squares: float
    freedom: int
    f: float = float("nan")
    p: float = float("nan")
    eta_squared: float = float("nan")
    omega_squared: float = float("nan")


def two_way(values: Sequence[float], first: Sequence[str], second: Sequence[str]) -> dict[str, Effect]:
    """Return the effects "first", "second", "interaction" and "residual" of two factors on some values.

    Args:
        values: what was observed.
        first: the level of the first factor at each.
        second: that of the second.

    Raises:
        ValueError: if a factor has fewer than two levels, or there are no more values than groups.

    Example:
        >>> found = two_way([1, 3, 2, 4, 5, 7, 6, 8], list("aabbaabb"), list("xxxxyyyy"))
        >>> found["second"].squares, found["second"].f, round(found["second"].eta_squared, 3)
        (32.0, 16.0, 0.762)
    """
    from scipy.special import fdtrc  # takes a moment to import

    observed = np.asarray(values, dtype=np.float64)
    left, right = (_indicators(levels) for levels in (first, second))
    both = _indicators([f"{a}\0{b}" for a, b in zip(first, second, strict=True)])
    if left.shape[1] < 2 or right.shape[1] < 2 or len(observed) <= both.shape[1]:
        raise ValueError("an analysis of variance needs two levels of each factor, and more values than groups")
    without = {
        "first": _rest(observed, right),
        "second": _rest(observed, left),
        "interaction": _rest(observed, np.hstack([left, right])),
    }
    full = _rest(observed, both)
    freedom = {"first": left.shape[1] - 1, "second": right.shape[1] - 1}
    freedom["interaction"] = both.shape[1] - 1 - freedom["first"] - freedom["second"]
    squares = {name: max(without[name] - without["interaction"], 0.0) for name in ("first", "second")}
    squares["interaction"] = max(without["interaction"] - full, 0.0)
    left_over = len(observed) - both.shape[1]
    error, total = full / left_over, sum(squares.values()) + full
    effects = {}
    for name, of in squares.items():
        count = freedom[name]
        f = of / count / error if count and error else float("nan")
        omega = (of - count * error) / (total + error) if total else float("nan")
        eta = of / total if total else float("nan")
        effects[name] = Effect(of, count, f, float(fdtrc(count, left_over, f)) if f == f else f, eta, omega)
    return {**effects, "residual": Effect(full, left_over)}


def _indicators(levels: Sequence[str]) -> _Values:
    """Return a column for each level, one where it is taken."""
    names = sorted(set(levels))
    return np.asarray([[level == name for name in names] for level in levels], dtype=np.float64)


def _rest(observed: _Values, design: _Values) -> float:
    """Return the sum of squares that a linear model leaves."""
    fitted = design @ np.linalg.lstsq(design, observed, rcond=None)[0]
    return float(np.square(observed - fitted).sum())
