"""Scores: one number for each entry. The lowest are dropped, the highest are grown.

A score is any function from `Entries` to a 1-D tensor of the same length, so a lambda is one too. The score of a unit
is the mean over its weights, or the largest of them with `by_largest`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regrow.core.entries import Entries

__all__ = [
    "Score",
    "by_largest",
    "gradient",
    "magnitude",
    "magnitude_and_gradient",
    "magnitude_by_sign",
    "momentum",
    "random",
    "unit_means",
]

Score = Callable[[Entries], Tensor]


def magnitude(entries: Entries) -> Tensor:
    """Score by the absolute value of the weight.

    Example:
        >>> import torch
        >>> magnitude(Entries(index=torch.tensor([0, 1]), weight=torch.tensor([-2.0, 1.0]))).tolist()
        [2.0, 1.0]
    """
    return entries.weight.abs()


def magnitude_and_gradient(factor: float) -> Score:
    """Score by |weight| + `factor` |gradient|, in single precision at least (MEST, arXiv:2110.14032).

    Args:
        factor: what the gradient counts beside the weight, not below 0.

    Raises:
        ValueError: if `factor` is below 0.

    Example:
        >>> import torch
        >>> entries = Entries(torch.arange(2), torch.tensor([-2.0, 1.0]), grad=torch.tensor([0.0, 4.0]))
        >>> magnitude_and_gradient(0.5)(entries).tolist()
        [2.0, 3.0]
    """
    if factor < 0:
        raise ValueError(f"factor is {factor}: a gradient cannot count less than nothing")

    def both(entries: Entries) -> Tensor:
        # half precision would lose the gradient's part
        kind = torch.promote_types(entries.weight.dtype, torch.float32)
        return entries.weight.abs().to(kind).add_(entries.grad.abs().to(kind), alpha=factor)

    return both


def magnitude_by_sign(entries: Entries) -> Tensor:
    """Score by the part of the weights of the same sign that are no larger in absolute value, in (0, 1].

    A share of the weights that is dropped by it is that share of the positive and of the negative ones (SET,
    arXiv:1707.04780): the smallest positive and the largest negative. Zero counts as positive.

    Example:
        >>> import torch
        >>> magnitude_by_sign(Entries(index=torch.arange(4), weight=torch.tensor([-3.0, 1.0, 4.0, -2.0]))).tolist()
        [1.0, 0.5, 1.0, 0.5]
    """
    magnitude, negative = entries.weight.abs(), entries.weight < 0
    order = magnitude.argsort(stable=True)
    negatives, numbers = negative[order].cumsum(0), torch.arange(1, len(order) + 1, device=order.device)
    of_same_sign = torch.where(negative[order], negatives, numbers - negatives)
    counts = torch.where(negative[order], negative.sum(), (~negative).sum())
    # in double precision every part of as many weights as there may be is a number of its own
    share = torch.empty(len(order), dtype=torch.float64, device=order.device)
    share[order] = of_same_sign.double() / counts
    return share.masked_fill_(magnitude.isnan(), torch.nan)


def gradient(entries: Entries) -> Tensor:
    """Score by the absolute value of the gradient at the update (RigL, arXiv:1911.11134)."""
    return entries.grad.abs()


def momentum(entries: Entries) -> Tensor:
    """Score by the absolute value of the optimizer's momentum (sparse momentum, arXiv:1907.04840)."""
    return entries.momentum.abs()


def random(entries: Entries) -> Tensor:
    """Score at random, uniform in [0, 1), from the generator that was passed to the update (SET)."""
    return entries.noise()


@dataclass(frozen=True)
class _ByLargest:
    score: Score

    def __call__(self, entries: Entries) -> Tensor:
        return self.score(entries)


def by_largest(score: Score) -> Score:
    """Score a unit of several weights by the largest of their scores, in the place of the mean.

    So a block stays, or grows, for one weight in it that matters: max pooling beside average pooling (as in jaxpruner,
    arXiv:2304.14082). For single weights it is `score` itself.

    Args:
        score: of the weights.

    Example:
        >>> entries = Entries(index=torch.arange(4), weight=torch.tensor([1.0, 3.0, -2.0, 2.5]))
        >>> unit_means(magnitude, entries, 2).tolist(), unit_means(by_largest(magnitude), entries, 2).tolist()
        ([2.0, 2.25], [3.0, 2.5])
    """
    return _ByLargest(score)


def unit_means(score: Score, entries: Entries, size: int) -> Tensor:
    """Return the score of each unit, the mean over its entries unless the score says otherwise, shape (units,).

    Args:
        score: the score of each entry.
        entries: the entries, unit after unit.
        size: entries in a unit.

    Raises:
        ValueError: if the score does not return a number for each entry.

    Example:
        >>> import torch
        >>> entries = Entries(index=torch.arange(4), weight=torch.tensor([1.0, 3.0, -2.0, 2.0]))
        >>> unit_means(magnitude, entries, 2).tolist()
        [2.0, 2.0]
    """
    scores = score(entries)
    if scores.shape != (len(entries),):
        raise ValueError(f"a score of shape {tuple(scores.shape)} for {len(entries)} entries: give one for each")
    if size == 1:
        return scores
    if isinstance(score, _ByLargest):
        return scores.view(-1, size).amax(dim=1)
    # A mean in half precision would tie what differs.
    return scores.view(-1, size).mean(dim=1, dtype=torch.promote_types(scores.dtype, torch.float32))
