"""The gradient of weights that a sparse layer does not have: at some positions, without ever making the rest.

Kernels serve float32 on the CPU. Elsewhere it is put together from dot products, a part at a time; and where most of
the positions are asked for, cut out of the dense gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from regrow.ops.conv2d.cpu import conv2d_values_gradient
from regrow.ops.conv2d.operators import flat, unflat
from regrow.ops.native import kernels_serve
from regrow.pattern import Geometry, Pattern

# Numbers gathered at a time: small enough for the cache, large enough that calls do not count.
_CHUNK = 1 << 18
# Rows of a dense gradient made at a time, as many as have this many elements.
_ROWS = 1 << 22
# Share of all positions above which the dense gradient is quicker.
_MOST = 0.5


def watch(output: Tensor, x: Tensor, absent: Tensor, pattern: Pattern, geometry: Geometry) -> Tensor:
    """Return a copy of a layer's output whose backward pass also gives the gradient of weights that do not exist.

    Args:
        output: output of the layer, shape (..., outputs) or (N, O, H', W').
        x: its input, shape (..., inputs) or (N, C, H, W).
        absent: stands for the weights, zero; their gradient becomes that of this tensor. Shape (positions,).
        pattern: where they stand in the dense weight.
        geometry: stride, padding, dilation and groups.
    """
    # A view instead of a copy would forbid what follows to work in place.
    watched: Tensor = _watch(output, x, absent, pattern.positions, *_arguments(output, x, pattern, geometry))
    return watched


def weight_gradient_at(pattern: Pattern, x: Tensor, gradient: Tensor, geometry: Geometry) -> Tensor:
    """Return the gradient of the weight of a linear layer or a convolution at some positions, shape (positions,).

    Args:
        pattern: the positions, and the shape of the dense weight.
        x: input of the layer, shape (..., inputs) or (N, C, H, W).
        gradient: gradient of its output, shape (..., outputs) or (N, O, H', W').
        geometry: stride, padding, dilation and groups.

    Example:
        >>> x, gradient = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0, 5.0]])
        >>> weight_gradient_at(Pattern((3, 2), torch.tensor([0, 5])), x, gradient, Geometry())
        tensor([ 3., 10.])
    """
    at: Tensor = _gradient_at(gradient, x, pattern.positions, *_arguments(gradient, x, pattern, geometry))
    return at


def takes_kernels(pattern: Pattern, *tensors: Tensor) -> bool:
    """Return whether kernels compute the gradient of these tensors at these positions."""
    return kernels_serve(*tensors) and pattern.density <= _MOST


def _arguments(
    output: Tensor, x: Tensor, pattern: Pattern, geometry: Geometry
) -> tuple[list[Tensor], list[int], list[int]]:
    """Return index structure (empty where kernels do not serve), shape of the dense weight and geometry."""
    index = list(pattern.forward_blocks(geometry)) if takes_kernels(pattern, output, x) else []
    return index, list(pattern.shape), flat(geometry)


@torch.library.custom_op("regrow::watch", mutates_args=())
def _watch(
    output: Tensor,
    x: Tensor,
    absent: Tensor,
    positions: Tensor,
    index: list[Tensor],
    weight_shape: list[int],
    geometry: list[int],
) -> Tensor:
    return output.clone()


@torch.library.custom_op("regrow::gradient_at", mutates_args=())
def _gradient_at(
    gradient: Tensor, x: Tensor, positions: Tensor, index: list[Tensor], weight_shape: list[int], geometry: list[int]
) -> Tensor:
    settings = unflat(geometry)
    x = x.to(gradient.dtype)
    if len(weight_shape) == 2:
        x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    if index:
        return conv2d_values_gradient(index, x, gradient, weight_shape, settings)
    positions = positions.to(gradient.device)
    most = len(positions) > _MOST * prod(weight_shape)
    if len(weight_shape) == 2:
        return (_linear_from_dense if most else _linear_from_dots)(positions, x, gradient)
    if most:
        dense: Tensor = conv2d_weight(x, weight_shape, gradient, *settings)  # type: ignore[no-untyped-call]
        return dense.reshape(-1)[positions]
    return _conv2d_from_dots(positions, x, gradient, weight_shape, settings)


@_watch.register_fake
def _(
    output: Tensor,
    x: Tensor,
    absent: Tensor,
    positions: Tensor,
    index: list[Tensor],
    weight_shape: list[int],
    geometry: list[int],
) -> Tensor:
    return output.clone()


@_gradient_at.register_fake
def _(
    gradient: Tensor, x: Tensor, positions: Tensor, index: list[Tensor], weight_shape: list[int], geometry: list[int]
) -> Tensor:
    return gradient.new_empty(positions.shape)


def _setup_watch(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, x, absent, positions, index, ctx.weight_shape, ctx.geometry = inputs
    ctx.dtype = absent.dtype
    ctx.index_length = len(index)
    ctx.save_for_backward(x, positions, *index)


def _watch_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, positions, *index = ctx.saved_tensors
    at = _gradient_at(gradient, x, positions, index, ctx.weight_shape, ctx.geometry)
    return gradient, None, at.to(ctx.dtype), None, [None] * ctx.index_length, None, None


def _refuse_double_backward(*_: Any) -> NoReturn:
    raise RuntimeError(
        "the gradient of absent weights has no second derivatives: call backward without create_graph, or use masked "
        "storage"
    )


_watch.register_autograd(_watch_backward, setup_context=_setup_watch)
_gradient_at.register_autograd(_refuse_double_backward)


def _linear_from_dense(positions: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """Cut the gradient of a linear weight out of the dense one, some rows of that at a time."""
    outputs, inputs = gradient.shape[1], x.shape[1]
    result = gradient.new_empty(len(positions))
    rows = max(1, _ROWS // max(1, inputs))
    for first in range(0, outputs, rows):
        bounds = torch.tensor([first, min(first + rows, outputs)], dtype=positions.dtype, device=positions.device)
        start, end = torch.searchsorted(positions, bounds * inputs).tolist()
        dense = gradient[:, first : first + rows].T @ x
        result[start:end] = dense.reshape(-1)[positions[start:end] - first * inputs]
    return result


def _linear_from_dots(positions: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    return _dots(gradient.T.contiguous(), x.T.contiguous(), positions // x.shape[1], positions % x.shape[1])


def _conv2d_from_dots(
    positions: Tensor, x: Tensor, gradient: Tensor, weight_shape: list[int], geometry: Geometry
) -> Tensor:
    outputs, channels, height, width = weight_shape
    tap = positions % (height * width)
    row = positions // (height * width) // channels
    group = row // (outputs // geometry.groups)
    channel = positions // (height * width) % channels + group * channels

    result = gradient.new_zeros(len(positions))
    by_output = gradient.movedim(1, 0).flatten(1)
    # Every tap of the kernel is a linear layer between the outputs and the inputs that it reads.
    for number, seen in enumerate(_seen_by_taps(x, gradient, (height, width), geometry)):
        here = (tap == number).nonzero().squeeze(1)
        if len(here):
            result[here] = _dots(by_output, seen.movedim(1, 0).flatten(1), row[here], channel[here])
    return result


def _seen_by_taps(x: Tensor, gradient: Tensor, kernel: tuple[int, int], geometry: Geometry) -> Iterator[Tensor]:
    """Yield for each tap of the kernel the inputs that it multiplies, shape (N, C, H', W'), as a view."""
    vertical, horizontal = geometry.padding
    padded = torch.nn.functional.pad(x, (horizontal, horizontal, vertical, vertical))
    for top in range(kernel[0]):
        for left in range(kernel[1]):
            rows, columns = (
                slice(first * dilation, first * dilation + (count - 1) * stride + 1, stride)
                for first, count, stride, dilation in zip(
                    (top, left), gradient.shape[2:], geometry.stride, geometry.dilation, strict=True
                )
            )
            yield padded[:, :, rows, columns]


def _dots(left: Tensor, right: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the dot product of row `row[i]` of `left` with row `column[i]` of `right`, for each i."""
    result = left.new_empty(len(row))
    count = max(1, _CHUNK // max(1, left.shape[1]))
    for start in range(0, len(row), count):
        part = slice(start, start + count)
        result[part] = (left[row[part]] * right[column[part]]).sum(1)
    return result
