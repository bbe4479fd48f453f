"""Scores: one number for each entry. The lowest are dropped, the highest are grown.

A score is any function from `Entries` to a 1-D tensor of the same length, so a lambda is one too. The score of a unit
is the mean over its weights.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from regrow.core.entries import Entries

__all__ = ["Score", "gradient", "magnitude", "momentum", "random"]

Score = Callable[[Entries], Tensor]


def magnitude(entries: Entries) -> Tensor:
    """Score by the absolute value of the weight.

    Example:
        >>> import torch
        >>> magnitude(Entries(index=torch.tensor([0, 1]), weight=torch.tensor([-2.0, 1.0]))).tolist()
        [2.0, 1.0]
    """
    return entries.weight.abs()


def gradient(entries: Entries) -> Tensor:
    """Score by the absolute value of the gradient at the update (RigL, arXiv:1911.11134)."""
    return entries.grad.abs()


def momentum(entries: Entries) -> Tensor:
    """Score by the absolute value of the optimizer's momentum (sparse momentum, arXiv:1907.04840)."""
    return entries.momentum.abs()


def random(entries: Entries) -> Tensor:
    """Score at random, uniform in [0, 1), from the generator that was passed to the update (SET)."""
    return entries.noise()
