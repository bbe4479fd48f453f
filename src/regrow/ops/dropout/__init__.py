"""Dropout whose mask follows from a seed, with the batch innermost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regrow.ops import eager
from regrow.ops.dropout.reference import dropout_reference
from regrow.ops.layout import allocate_batch_last, is_batch_last, to_batch_last
from regrow.ops.native import kernels, kernels_serve
from regrow.ops.refuse import without_derivative

# Places within a channel are counted in 32 bits.
_PLACES = 1 << 32


def dropout(x: Tensor, share: float, seed: int, *, inplace: bool = False) -> Tensor:
    """Set elements to zero at random and divide the others by the share that is kept.

    Which elements, the seed says alone, by a hash of it, the channel and the place within the channel: the same on any
    machine and with any number of threads. No mask is kept for the gradient.

    Kernels serve float32 on the CPU; their result has the batch innermost in memory (see `regrow.ops.layout`).
    Otherwise PyTorch's own operations do the same.

    Args:
        x: input, shape (N, C, H, W).
        share: how many are dropped: at least 0 and less than 1.
        seed: of 64 bits, as from `draw_seed`.
        inplace: whether `x` is overwritten.

    Returns:
        Output, shape as `x`.

    Raises:
        ValueError: if `x` has not 4 dimensions or the share lies outside.

    Example:
        >>> dropout(torch.ones(1, 1, 2, 4), 0.5, seed=1)
        tensor([[[[0., 0., 2., 2.],
                  [0., 2., 0., 2.]]]])
    """
    if x.dim() != 4:
        raise ValueError(f"dropout wants 4 dimensions (N, C, H, W), not {tuple(x.shape)}")
    check_share(share)
    if not share or not x.numel():
        return x
    if serves(x) and (not inplace or is_batch_last(x)):
        output: Tensor = _Dropout.apply(x, share, seed, inplace)  # type: ignore[no-untyped-call]
        return output
    output = dropout_reference(x, share, seed)
    return x.copy_(output) if inplace else output


def check_share(share: float) -> None:
    """Raise a ValueError for a share that nothing can drop."""
    if not 0.0 <= share < 1.0:
        raise ValueError(f"the share that is dropped must be at least 0 and less than 1, not {share}")


def serves(x: Tensor) -> bool:
    """Return whether kernels drop elements of a tensor (N, C, H, W)."""
    return kernels_serve(x) and eager.serves(x) and x.numel() < _PLACES * x.shape[1]


def draw_seed() -> int:
    """Return a seed for `dropout` from PyTorch's default generator, which `torch.manual_seed` sets."""
    return int(torch.empty((), dtype=torch.int64).random_(-(1 << 63), None)) & ((1 << 64) - 1)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float, seed: int, inplace: bool) -> Tensor:
        ctx.share, ctx.seed = share, seed
        if not inplace:
            return _dropped(x, share, seed)
        ctx.mark_dirty(x)
        return _dropped(x, share, seed, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (given,) = gradients
        with torch.no_grad():
            of_x = _dropped(given, ctx.share, ctx.seed)
        return without_derivative(of_x, given), None, None, None


def _dropped(x: Tensor, share: float, seed: int, output: Tensor | None = None) -> Tensor:
    x = to_batch_last(x)
    output = allocate_batch_last(*x.shape) if output is None else output
    channels = x.shape[1]
    kernels().drop(
        dropout=kernels().Dropout(share, seed),
        channels=channels,
        length=x.numel() // channels,
        input=x.data_ptr(),
        output=output.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return output


__all__ = ["check_share", "draw_seed", "dropout", "serves"]
