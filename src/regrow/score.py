"""Scores: one number for each entry; the lowest are dropped, the highest are grown."""

from regrow.core.pick import Pick, per_output
from regrow.core.rewire import Moves, Rewire, constant_fan_in
from regrow.core.score import (
    Score,
    by_largest,
    gradient,
    magnitude,
    magnitude_and_gradient,
    magnitude_by_sign,
    momentum,
    random,
)

__all__ = [
    "Moves",
    "Pick",
    "Rewire",
    "Score",
    "by_largest",
    "constant_fan_in",
    "gradient",
    "magnitude",
    "magnitude_and_gradient",
    "magnitude_by_sign",
    "momentum",
    "per_output",
    "random",
]
