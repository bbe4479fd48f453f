"""Dropout whose mask follows from a seed, with the batch innermost."""

from __future__ import annotations

from torch import Tensor

from regrow.ops.dropout.seed import draw_seed
from regrow.ops.select import Backends

__all__ = ["check_rate", "draw_seed", "dropout"]

_backends = Backends(__name__)


def dropout(x: Tensor, rate: float, seed: int | None = None, *, inplace: bool = False) -> Tensor:
    """Set elements to zero at random and divide the others by the rate at which they are kept.

    Which elements, the seed says alone, by a hash of it, the channel and where the element lies within the channel: the
    same on any machine and with any number of threads. No mask is kept for the gradient.

    Kernels serve float32 and bfloat16 on the CPU; their result has the batch innermost in memory (see
    `regrow.ops.layout`). Otherwise PyTorch's own operations do the same, or without a seed PyTorch's own dropout.

    Args:
        x: input, shape (N, C, H, W).
        rate: how many of the elements are dropped: at least 0 and less than 1.
        seed: of 64 bits, as from `draw_seed`; None draws one where kernels serve.
        inplace: whether `x` is overwritten.

    Returns:
        Output, shape as `x`.

    Raises:
        ValueError: if `x` has not 4 dimensions or the rate lies outside.

    Example:
        >>> import torch
        >>> dropout(torch.ones(1, 1, 2, 4), 0.5, seed=1)
        tensor([[[[0., 0., 2., 2.],
                  [0., 2., 0., 2.]]]])
    """
    if x.dim() != 4:
        raise ValueError(f"dropout wants 4 dimensions (N, C, H, W), not {tuple(x.shape)}")
    check_rate(rate)
    if not rate or not x.numel():
        return x
    output: Tensor = _backends.select(x).dropout(x, rate, seed, inplace)
    return output


def check_rate(rate: float) -> None:
    """Raise a ValueError for a rate at which nothing can be dropped."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"the rate of dropout must be at least 0 and less than 1, not {rate}")
