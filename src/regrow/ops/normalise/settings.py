"""What a normalisation is told beside its tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Running", "Settings"]


class Settings(NamedTuple):
    """How to normalise; see `regrow.ops.normalise`.

    Attributes:
        epsilon: added to the variance.
        relu: whether negative results become zero.
        training: whether mean and variance are those of the batch.
        rate: of dropout at the end.
        seed: which elements that drops; None where PyTorch's own dropout will do.
    """

    epsilon: float
    relu: bool
    training: bool
    rate: float = 0.0
    seed: int | None = None


class Running(NamedTuple):
    """Statistics that follow those of the batches, in place.

    Attributes:
        mean: of each channel, shape (C,).
        variance: unbiased, of each channel, shape (C,).
        batches: how many there were, int64, shape ().
        momentum: what the newest batch counts; None for the mean over all batches.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor
    momentum: float | None
