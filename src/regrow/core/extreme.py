"""The highest or lowest of many scores, exactly so many, in less time than a sort."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from regrow.core.positions import where

__all__ = ["extreme", "refuse_nan"]

# From this many scores on a sample is taken, of about so many, in strides that no layer's sides are multiples of.
_MANY, _SAMPLE = 1 << 17, 1 << 14
_STRIDES = (7, 13, 31, 61, 127, 251, 509, 1021, 2039, 4093, 8191)


def extreme(score: Tensor, count: int, index_at: Callable[[Tensor], Tensor], *, largest: bool) -> Tensor:
    """Return the ascending numbers of the `count` highest or lowest scores, ties to the lower index.

    Args:
        score: scores, shape (n,).
        count: how many, at most n.
        index_at: returns what decides ties for ascending numbers of scores.
        largest: whether the highest are wanted.

    Raises:
        ValueError: if a score is NaN.

    Example:
        >>> index = torch.tensor([5, 3, 1])
        >>> extreme(torch.tensor([1.0, 2.0, 2.0]), 1, index.__getitem__, largest=True)
        tensor([2])
    """
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=score.device)
    refuse_nan(score)
    # topk moves all of them with their numbers, so those that a sample tells to be too low are left out first.
    many = largest and len(score) >= _MANY and count <= len(score) // 4
    above, threshold = _leading(score, count) if many else (None, None)
    some = score if above is None else score[above]
    if threshold is None:
        best = torch.topk(some, count, largest=largest, sorted=False).values
        threshold = best.min() if largest else best.max()
    reached = where(some >= threshold if largest else some <= threshold)
    tied = some[reached] == threshold if len(reached) > count else None
    if above is not None:
        reached = above[reached]
    if tied is None:
        return reached
    beyond, ties = reached[~tied], reached[tied]
    wanted = count - len(beyond)
    ties = ties[index_at(ties).argsort()[:wanted]]
    return torch.cat((beyond, ties)).sort().values


def refuse_nan(score: Tensor) -> None:
    """Raise a ValueError if a score is NaN."""
    if len(score) and score.amin().isnan():  # as is the least of any numbers of which one is
        raise ValueError("a score is NaN: the weights, gradients or momentum have diverged; lower the learning rate")


def _leading(score: Tensor, count: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the ascending numbers of a few scores that the `count` highest are among, and what these reach if known.

    None for both where the sample has missed.
    """
    step = max(prime for prime in _STRIDES if prime * _SAMPLE <= len(score))
    sample = score[::step]
    expected = count / step
    take = min(len(sample), math.ceil(expected + 4 * math.sqrt(expected) + 8))
    low = torch.topk(sample, take, sorted=False).values.min()
    above = where(score > low)
    if len(above) >= count:
        return above, None
    above = where(score >= low)  # many scores are the same
    return (above, low) if len(above) >= count else (None, None)
