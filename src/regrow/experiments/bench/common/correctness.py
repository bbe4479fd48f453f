"""Correctness before timing: when a result counts as wrong."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["differs", "too_large"]


def differs(found: float, right: float, tolerance: float) -> bool:
    """Return whether a number is further from the right one than its tolerance allows; NaN always is.

    Args:
        found: the number.
        right: what it should be.
        tolerance: relative to the right one, or to 1 where that is less.

    Example:
        >>> differs(1.0001, 1.0, 1e-3), differs(float("nan"), 1.0, 1e-3)
        (False, True)
    """
    return not abs(found - right) <= tolerance * max(abs(right), 1.0)


def too_large(errors: Mapping[str, float], tolerance: float) -> dict[str, float]:
    """Return the errors that are not below a tolerance; NaN never is.

    Example:
        >>> too_large({"forward": 1e-7, "input": 0.5}, 1e-4)
        {'input': 0.5}
    """
    return {name: error for name, error in errors.items() if not error < tolerance}
