"""Redistribution: how many of the weights to grow each layer gets."""

from regrow.core.budget import multiply_adds, uniform_multiply_adds, within, within_rates
from regrow.core.ranking import Drops, by_rank, lowest_of_all
from regrow.core.redistribute import (
    Rates,
    Redistribute,
    Share,
    apportion,
    by_mean,
    by_share,
    keep,
    mean_of,
    nonzeros,
    room_to_grow,
    spare_full,
    spare_full_by,
    survivors,
    unit_sizes,
    weights,
)

__all__ = [
    "Drops",
    "Rates",
    "Redistribute",
    "Share",
    "apportion",
    "by_mean",
    "by_rank",
    "by_share",
    "keep",
    "lowest_of_all",
    "mean_of",
    "multiply_adds",
    "nonzeros",
    "room_to_grow",
    "spare_full",
    "spare_full_by",
    "survivors",
    "uniform_multiply_adds",
    "unit_sizes",
    "weights",
    "within",
    "within_rates",
]
