"""Scores: one number for each entry; the lowest are dropped, the highest are grown."""

from regrow.core.pick import Pick, per_output
from regrow.core.score import (
    Score,
    gradient,
    magnitude,
    magnitude_and_gradient,
    magnitude_by_sign,
    momentum,
    random,
)

__all__ = [
    "Pick",
    "Score",
    "gradient",
    "magnitude",
    "magnitude_and_gradient",
    "magnitude_by_sign",
    "momentum",
    "per_output",
    "random",
]
