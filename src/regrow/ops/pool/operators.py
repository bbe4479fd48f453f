"""Pooling by the compiled kernels, as operators that PyTorch knows. No gradients of gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from regrow.ops.layout import allocate_batch_last, batch_last, empty_batch_last
from regrow.ops.native import kernels
from regrow.ops.refuse import refuse_double_backward

# Which tap of a window was largest is kept in a byte.
MOST_TAPS = 256


class Window(NamedTuple):
    """The windows of a plane: kernel, stride and padding, each (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


def max_pool2d_cpu(x: Tensor, window: Window) -> Tensor:
    """Pool a float32 tensor on the CPU; arguments as for `regrow.ops.pool.max_pool2d`."""
    wants_gradient = torch.is_grad_enabled() and x.requires_grad
    output: tuple[Tensor, Tensor] = _max_pool2d(batch_last(x), _flat(window), wants_gradient)
    return output[0]


def mean_pool2d_cpu(x: Tensor, window: Window, divisor: int | None) -> Tensor:
    """Pool a float32 tensor on the CPU; arguments as for `regrow.ops.pool.mean_pool2d`."""
    output: Tensor = _mean_pool2d(batch_last(x), _flat(window), divisor or 0)
    return output


@torch.library.custom_op("regrow::max_pool2d", mutates_args=(), device_types="cpu")
def _max_pool2d(x: Tensor, window: list[int], wants_gradient: bool) -> tuple[Tensor, Tensor]:
    """Return the maxima and, batch innermost, which tap of its window each of them was."""
    x = batch_last(x)
    output = allocate_batch_last(*_output_shape(x, window))
    winner = _empty_winner(x, window, wants_gradient)
    kernels().max_pool(
        geometry=_geometry(list(x.shape), window),
        channels=x.shape[1],
        input=x.data_ptr(),
        output=output.data_ptr(),
        winner=winner.data_ptr() if wants_gradient else 0,
        threads=torch.get_num_threads(),
    )
    return output, winner


@torch.library.custom_op("regrow::max_pool2d_gradient", mutates_args=(), device_types="cpu")
def _max_pool2d_gradient(output_gradient: Tensor, winner: Tensor, input_shape: list[int], window: list[int]) -> Tensor:
    output_gradient = batch_last(output_gradient)
    gradient = allocate_batch_last(*input_shape)
    kernels().max_pool_gradient(
        geometry=_geometry(input_shape, window),
        channels=input_shape[1],
        output_gradient=output_gradient.data_ptr(),
        winner=winner.contiguous().data_ptr(),
        input_gradient=gradient.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return gradient


@torch.library.custom_op("regrow::mean_pool2d", mutates_args=(), device_types="cpu")
def _mean_pool2d(x: Tensor, window: list[int], divisor: int) -> Tensor:
    x = batch_last(x)
    output = allocate_batch_last(*_output_shape(x, window))
    kernels().mean_pool(
        geometry=_geometry(list(x.shape), window),
        channels=x.shape[1],
        divisor=divisor,
        input=x.data_ptr(),
        output=output.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return output


@torch.library.custom_op("regrow::mean_pool2d_gradient", mutates_args=(), device_types="cpu")
def _mean_pool2d_gradient(output_gradient: Tensor, input_shape: list[int], window: list[int], divisor: int) -> Tensor:
    output_gradient = batch_last(output_gradient)
    gradient = allocate_batch_last(*input_shape)
    kernels().mean_pool_gradient(
        geometry=_geometry(input_shape, window),
        channels=input_shape[1],
        divisor=divisor,
        output_gradient=output_gradient.data_ptr(),
        input_gradient=gradient.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return gradient


@_max_pool2d.register_fake
def _(x: Tensor, window: list[int], wants_gradient: bool) -> tuple[Tensor, Tensor]:
    return empty_batch_last(x, *_output_shape(x, window)), _empty_winner(x, window, wants_gradient)


@_max_pool2d_gradient.register_fake
def _(output_gradient: Tensor, winner: Tensor, input_shape: list[int], window: list[int]) -> Tensor:
    return empty_batch_last(output_gradient, *input_shape)


@_mean_pool2d.register_fake
def _(x: Tensor, window: list[int], divisor: int) -> Tensor:
    return empty_batch_last(x, *_output_shape(x, window))


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
    return _max_pool2d_gradient(output_gradient, winner, list(ctx.input_shape), ctx.window), None, None


def _setup_mean(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.window, ctx.divisor = inputs
    ctx.input_shape = x.shape


def _mean_backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor, None, None]:
    return _mean_pool2d_gradient(output_gradient, list(ctx.input_shape), ctx.window, ctx.divisor), None, None


_max_pool2d.register_autograd(_max_backward, setup_context=_setup_max)
_mean_pool2d.register_autograd(_mean_backward, setup_context=_setup_mean)
_max_pool2d_gradient.register_autograd(refuse_double_backward)
_mean_pool2d_gradient.register_autograd(refuse_double_backward)


def _flat(window: Window) -> list[int]:
    """Return a window as the numbers that an operator can take: kernel, stride, padding."""
    return [*window.kernel, *window.stride, *window.padding]


def _output_size(size: int, window: list[int], axis: int) -> int:
    return (size + 2 * window[4 + axis] - window[axis]) // window[2 + axis] + 1


def _output_shape(x: Tensor, window: list[int]) -> tuple[int, ...]:
    return (*x.shape[:2], *(_output_size(x.shape[2 + axis], window, axis) for axis in (0, 1)))


def _empty_winner(x: Tensor, window: list[int], wants_gradient: bool) -> Tensor:
    count, *others = _output_shape(x, window)
    return x.new_empty((*others, count) if wants_gradient else (0,), dtype=torch.uint8)


def _geometry(input_shape: list[int], window: list[int]) -> Any:
    height, width = (
        kernels().Axis(
            input=input_shape[2 + axis],
            output=_output_size(input_shape[2 + axis], window, axis),
            kernel=window[axis],
            stride=window[2 + axis],
            padding=window[4 + axis],
            dilation=1,
        )
        for axis in (0, 1)
    )
    return kernels().Geometry(batch=input_shape[0], height=height, width=width, transposed=False)
