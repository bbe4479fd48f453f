"""Schedules: plain functions of the number of optimizer steps taken."""

from regrow.core.schedule import (
    Schedule,
    Timing,
    at,
    constant,
    cosine,
    cubic,
    every,
    falling,
    inverse_power,
    linear,
    never,
    span,
    stages,
)

__all__ = [
    "Schedule",
    "Timing",
    "at",
    "constant",
    "cosine",
    "cubic",
    "every",
    "falling",
    "inverse_power",
    "linear",
    "never",
    "span",
    "stages",
]
