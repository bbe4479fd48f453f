"""The highest or lowest of many scores, exactly so many, in less time than a sort."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from regrow.core.positions import chosen, where

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
    threshold = _nth(score, count, largest=largest)
    reached = where(score >= threshold if largest else score <= threshold)
    if len(reached) == count:
        return reached
    tied = score[reached] == threshold
    beyond, ties = reached[~tied], reached[tied]
    wanted = count - len(beyond)
    ties = ties[index_at(ties).argsort()[:wanted]]
    return torch.cat((beyond, ties)).sort().values


def refuse_nan(score: Tensor) -> None:
    """Raise a ValueError if a score is NaN."""
    if len(score) and score.amin().isnan():  # as is the least of any numbers of which one is
        raise ValueError("a score is NaN: the weights, gradients or momentum have diverged; lower the learning rate")


def _nth(score: Tensor, count: int, *, largest: bool) -> Tensor:
    """Return the score that the `count` highest or lowest reach, shape ()."""
    if largest and len(score) >= _MANY and count <= len(score) // 4:
        # topk moves all of them with their numbers, so those that a sample tells to be too low are left out first.
        step = max(prime for prime in _STRIDES if prime * _SAMPLE <= len(score))
        sample = score[::step]
        expected = count / step
        take = min(len(sample), math.ceil(expected + 4 * math.sqrt(expected) + 8))
        low = torch.topk(sample, take, sorted=False).values.min()
        above = score > low
        if (reached := int(above.count_nonzero())) >= count:
            score = chosen(score, above)
        elif reached + int((score == low).count_nonzero()) >= count:
            return low
    best = torch.topk(score, count, largest=largest, sorted=False).values
    return best.min() if largest else best.max()
