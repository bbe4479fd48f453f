"""Dropout by the compiled kernels, float32 or bfloat16 on the CPU: called directly, as they change tensors in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regrow.ops.autograd import direct, without_derivative
from regrow.ops.dropout import reference
from regrow.ops.dropout.seed import draw_seed
from regrow.ops.layout import allocate_batch_last, is_batch_last, to_batch_last
from regrow.ops.native import kernels

__all__ = ["MOST_ELEMENTS", "dropout"]

# Elements of a channel are counted in 32 bits.
MOST_ELEMENTS = 1 << 32


def dropout(x: Tensor, rate: float, seed: int | None, inplace: bool) -> Tensor:
    """Drop elements of a tensor on the CPU; arguments as for `regrow.ops.dropout`."""
    # One sample is batch-last in any case, and PyTorch's operations then have the longer vectors.
    short = seed is None and x.shape[0] == 1
    if short or not direct(x) or x.numel() >= MOST_ELEMENTS * x.shape[1] or (inplace and not is_batch_last(x)):
        return reference.dropout(x, rate, seed, inplace)
    output: Tensor = _Dropout.apply(x, rate, draw_seed() if seed is None else seed, inplace)  # type: ignore[no-untyped-call]
    return output


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float, seed: int, inplace: bool) -> Tensor:
        ctx.rate, ctx.seed = rate, seed
        if not inplace:
            return _dropped(x, rate, seed)
        ctx.mark_dirty(x)
        return _dropped(x, rate, seed, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (given,) = gradients
        with torch.no_grad():
            of_x = _dropped(given, ctx.rate, ctx.seed)
        return without_derivative(of_x, given), None, None, None


def _dropped(x: Tensor, rate: float, seed: int, output: Tensor | None = None) -> Tensor:
    x = to_batch_last(x)
    output = allocate_batch_last(x.shape, x.dtype) if output is None else output
    channels = x.shape[1]
    native = kernels()
    native.drop(
        native.Dropout(rate, seed), channels, x.numel() // channels, x.data_ptr(), output.data_ptr(),
        torch.get_num_threads(), x.dtype is torch.bfloat16,
    )  # fmt: skip
    return output
