"""Pooling outside of the compiler: the same as the operators, with less on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regrow.ops.pool import run
from regrow.ops.pool.run import Window
from regrow.ops.refuse import without_derivative


def max_pool2d(x: Tensor, window: Window) -> Tensor:
    """Pool a float32 tensor on the CPU; arguments as for `regrow.ops.max_pool2d`."""
    output: Tensor = _MaxPool.apply(x, window)  # type: ignore[no-untyped-call]
    return output


def mean_pool2d(x: Tensor, window: Window, divisor: int) -> Tensor:
    """Pool a float32 tensor on the CPU; a divisor of 0 stands for the positions of the window that are no padding."""
    output: Tensor = _MeanPool.apply(x, window, divisor)  # type: ignore[no-untyped-call]
    return output


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        ctx.input_shape, ctx.window = x.shape, window
        output, winner = run.max_pool2d(x, window, ctx.needs_input_grad[0])
        ctx.save_for_backward(winner)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (given,) = gradients
        (winner,) = ctx.saved_tensors
        with torch.no_grad():
            gradient = run.max_pool2d_gradient(given, winner, ctx.input_shape, ctx.window)
        return without_derivative(gradient, given), None


class _MeanPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window, divisor: int) -> Tensor:
        ctx.input_shape, ctx.window, ctx.divisor = x.shape, window, divisor
        return run.mean_pool2d(x, window, divisor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (given,) = gradients
        with torch.no_grad():
            gradient = run.mean_pool2d_gradient(given, ctx.input_shape, ctx.window, ctx.divisor)
        return without_derivative(gradient, given), None, None
