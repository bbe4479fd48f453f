"""Distributions: how many weights each layer starts with."""

from regrow.core.distribution import (
    DISTRIBUTIONS,
    Distribution,
    erdos_renyi,
    erdos_renyi_kernel,
    uniform,
)

__all__ = [
    "DISTRIBUTIONS",
    "Distribution",
    "erdos_renyi",
    "erdos_renyi_kernel",
    "uniform",
]
