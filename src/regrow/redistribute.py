"""Redistribution: how many of the weights to grow each layer gets."""

from regrow.core.redistribute import (
    Redistribute,
    apportion,
    by_mean,
    keep,
    room_to_grow,
    unit_sizes,
)

__all__ = [
    "Redistribute",
    "apportion",
    "by_mean",
    "keep",
    "room_to_grow",
    "unit_sizes",
]
