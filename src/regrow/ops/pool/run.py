"""Pooling and its gradients by the compiled kernels, float32 on the CPU. Nothing here is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regrow.ops.layout import allocate_batch_last, to_batch_last
from regrow.ops.native import kernels

# Which tap of a window was largest is kept in a byte.
MOST_TAPS = 256


class Window(NamedTuple):
    """The windows of a plane: kernel, stride and padding, each (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


def max_pool2d(x: Tensor, window: Window, wants_winner: bool) -> tuple[Tensor, Tensor]:
    """Return the maxima and, batch innermost, which tap of its window each of them was; empty if nobody wants that."""
    x = to_batch_last(x)
    output = allocate_batch_last(*output_shape(x.shape, window))
    winner = empty_winner(x, window, wants_winner)
    kernels().max_pool(
        geometry=_geometry(x.shape, window),
        channels=x.shape[1],
        input=x.data_ptr(),
        output=output.data_ptr(),
        winner=winner.data_ptr() if wants_winner else 0,
        threads=torch.get_num_threads(),
    )
    return output, winner


def max_pool2d_gradient(output_gradient: Tensor, winner: Tensor, input_shape: Sequence[int], window: Window) -> Tensor:
    """Return the gradient of the input, batch-last."""
    gradient = allocate_batch_last(*input_shape)
    output_gradient, winner = to_batch_last(output_gradient), winner.contiguous()
    kernels().max_pool_gradient(
        geometry=_geometry(input_shape, window),
        channels=input_shape[1],
        output_gradient=output_gradient.data_ptr(),
        winner=winner.data_ptr(),
        input_gradient=gradient.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return gradient


def mean_pool2d(x: Tensor, window: Window, divisor: int) -> Tensor:
    """Return the means; a divisor of 0 stands for the positions of the window that are no padding."""
    x = to_batch_last(x)
    output = allocate_batch_last(*output_shape(x.shape, window))
    kernels().mean_pool(
        geometry=_geometry(x.shape, window),
        channels=x.shape[1],
        divisor=divisor,
        input=x.data_ptr(),
        output=output.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return output


def mean_pool2d_gradient(output_gradient: Tensor, input_shape: Sequence[int], window: Window, divisor: int) -> Tensor:
    """Return the gradient of the input, batch-last."""
    output_gradient = to_batch_last(output_gradient)
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


def output_shape(input_shape: Sequence[int], window: Window) -> tuple[int, ...]:
    """Return the shape of the output, (N, C, H', W')."""
    return (*input_shape[:2], *(_output_size(input_shape[2 + axis], window, axis) for axis in (0, 1)))


def empty_winner(x: Tensor, window: Window, wanted: bool) -> Tensor:
    """Return an uninitialised tensor for the taps of the maxima of `x`, or an empty one."""
    count, *others = output_shape(x.shape, window)
    return x.new_empty((*others, count) if wanted else (0,), dtype=torch.uint8)


def _output_size(size: int, window: Window, axis: int) -> int:
    return (size + 2 * window.padding[axis] - window.kernel[axis]) // window.stride[axis] + 1


def _geometry(input_shape: Sequence[int], window: Window) -> Any:
    height, width = (
        kernels().Axis(
            input=input_shape[2 + axis],
            output=_output_size(input_shape[2 + axis], window, axis),
            kernel=window.kernel[axis],
            stride=window.stride[axis],
            padding=window.padding[axis],
            dilation=1,
        )
        for axis in (0, 1)
    )
    return kernels().Geometry(batch=input_shape[0], height=height, width=width, transposed=False)
