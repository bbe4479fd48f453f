"""Schedules: plain functions of the number of optimizer steps taken."""

from regrow.core.schedule import (
    Schedule,
    Timing,
    constant,
    cosine,
    cubic,
    every,
    inverse_power,
    linear,
    never,
)

__all__ = [
    "Schedule",
    "Timing",
    "constant",
    "cosine",
    "cubic",
    "every",
    "inverse_power",
    "linear",
    "never",
]
