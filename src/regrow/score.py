"""Scores: one number for each entry; the lowest are dropped, the highest are grown."""

from regrow.core.score import (
    Score,
    gradient,
    magnitude,
    magnitude_by_sign,
    momentum,
    random,
)

__all__ = [
    "Score",
    "gradient",
    "magnitude",
    "magnitude_by_sign",
    "momentum",
    "random",
]
