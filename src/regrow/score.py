"""Scores: one number for each entry; the lowest are dropped, the highest are grown."""

from regrow.core.score import (
    Score,
    gradient,
    magnitude,
    momentum,
    random,
)

__all__ = [
    "Score",
    "gradient",
    "magnitude",
    "momentum",
    "random",
]
