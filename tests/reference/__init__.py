"""The methods once more: slow, plain, over dense arrays, written from the definitions and not from the library."""

from reference.counts import apportion, nearest_below
from reference.layers import Layer, growable, rows_of, units_of
from reference.methods import UPDATES, l3_scores
from reference.schedules import DENSITIES, RATES, UNTIL, cosine
from reference.training import REPLACES, Trainer

__all__ = [
    "DENSITIES",
    "RATES",
    "REPLACES",
    "UNTIL",
    "UPDATES",
    "Layer",
    "Trainer",
    "apportion",
    "cosine",
    "growable",
    "l3_scores",
    "nearest_below",
    "rows_of",
    "units_of",
]
