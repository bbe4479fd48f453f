"""Redistribution: how many of the weights to grow each layer gets."""

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
    "room_to_grow",
    "spare_full",
    "unit_sizes",
]
