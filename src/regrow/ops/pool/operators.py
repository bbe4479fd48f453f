"""Pooling as operators that PyTorch's compiler and exporter know. No gradients of gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regrow.ops.layout import batch_last, empty_batch_last
from regrow.ops.pool import run
from regrow.ops.pool.run import Window
from regrow.ops.refuse import refuse_double_backward


def max_pool2d(x: Tensor, window: Window) -> Tensor:
    """Pool by operators; arguments as for `regrow.ops.max_pool2d`."""
    wants_gradient = torch.is_grad_enabled() and x.requires_grad
    output: tuple[Tensor, Tensor] = _max_pool2d(batch_last(x), _flat(window), wants_gradient)
    return output[0]


def mean_pool2d(x: Tensor, window: Window, divisor: int) -> Tensor:
    """Pool by operators; a divisor of 0 stands for the positions of the window that are no padding."""
    output: Tensor = _mean_pool2d(batch_last(x), _flat(window), divisor)
    return output


@torch.library.custom_op("regrow::max_pool2d", mutates_args=(), device_types="cpu")
def _max_pool2d(x: Tensor, window: list[int], wants_gradient: bool) -> tuple[Tensor, Tensor]:
    return run.max_pool2d(x, _unflat(window), wants_gradient)


@torch.library.custom_op("regrow::max_pool2d_gradient", mutates_args=(), device_types="cpu")
def _max_pool2d_gradient(output_gradient: Tensor, winner: Tensor, input_shape: list[int], window: list[int]) -> Tensor:
    return run.max_pool2d_gradient(output_gradient, winner, input_shape, _unflat(window))


@torch.library.custom_op("regrow::mean_pool2d", mutates_args=(), device_types="cpu")
def _mean_pool2d(x: Tensor, window: list[int], divisor: int) -> Tensor:
    return run.mean_pool2d(x, _unflat(window), divisor)


@torch.library.custom_op("regrow::mean_pool2d_gradient", mutates_args=(), device_types="cpu")
def _mean_pool2d_gradient(output_gradient: Tensor, input_shape: list[int], window: list[int], divisor: int) -> Tensor:
    return run.mean_pool2d_gradient(output_gradient, input_shape, _unflat(window), divisor)


@_max_pool2d.register_fake
def _(x: Tensor, window: list[int], wants_gradient: bool) -> tuple[Tensor, Tensor]:
    shape = run.output_shape(x.shape, _unflat(window))
    return empty_batch_last(x, *shape), run.empty_winner(x, _unflat(window), wants_gradient)


@_max_pool2d_gradient.register_fake
def _(output_gradient: Tensor, winner: Tensor, input_shape: list[int], window: list[int]) -> Tensor:
    return empty_batch_last(output_gradient, *input_shape)


@_mean_pool2d.register_fake
def _(x: Tensor, window: list[int], divisor: int) -> Tensor:
    return empty_batch_last(x, *run.output_shape(x.shape, _unflat(window)))


@_mean_pool2d_gradient.register_fake
def _(output_gradient: Tensor, input_shape: list[int], window: list[int], divisor: int) -> Tensor:
    return empty_batch_last(output_gradient, *input_shape)


def _setup_max(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.window, _ = inputs
    _, winner = output
    ctx.input_shape = x.shape
    ctx.mark_non_differentiable(winner)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(winner)


def _max_backward(ctx: Any, output_gradient: Tensor | None, _: object) -> tuple[Tensor | None, None, None]:
    if output_gradient is None:
        return None, None, None
    (winner,) = ctx.saved_tensors
    return _max_pool2d_gradient(batch_last(output_gradient), winner, list(ctx.input_shape), ctx.window), None, None


def _setup_mean(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.window, ctx.divisor = inputs
    ctx.input_shape = x.shape


def _mean_backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor, None, None]:
    gradient = batch_last(output_gradient)
    return _mean_pool2d_gradient(gradient, list(ctx.input_shape), ctx.window, ctx.divisor), None, None


_max_pool2d.register_autograd(_max_backward, setup_context=_setup_max)
_mean_pool2d.register_autograd(_mean_backward, setup_context=_setup_mean)
_max_pool2d_gradient.register_autograd(refuse_double_backward)
_mean_pool2d_gradient.register_autograd(refuse_double_backward)


def _flat(window: Window) -> list[int]:
    """Return a window as the numbers that an operator can take: kernel, stride, padding."""
    return [*window.kernel, *window.stride, *window.padding]


def _unflat(flat: list[int]) -> Window:
    """Return the window that `_flat` made numbers of."""
    return Window(*((flat[at], flat[at + 1]) for at in (0, 2, 4)))
