"""Redistribution: how many of the weights to grow each layer gets."""

from regrow.core.budget import multiply_adds, uniform_multiply_adds, within, within_rates
from regrow.core.redistribute import (
    Rates,
    Redistribute,
    apportion,
    by_mean,
    keep,
    room_to_grow,
    spare_full,
    unit_sizes,
)

__all__ = [
    "Rates",
    "Redistribute",
    "apportion",
    "by_mean",
    "keep",
    "multiply_adds",
    "room_to_grow",
    "spare_full",
    "uniform_multiply_adds",
    "unit_sizes",
    "within",
    "within_rates",
]
