"""The gradient of a dense weight: all of it, or only at some positions without ever making the rest."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from regrow.pattern import Geometry

# Numbers gathered at a time: small enough for the cache, large enough that calls do not count.
_CHUNK = 1 << 18


def linear_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of the dense weight of a linear layer, shape (outputs, inputs).

    Args:
        x: input of the layer, shape (..., inputs).
        gradient: gradient of its output, shape (..., outputs).
    """
    return gradient.reshape(-1, gradient.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def linear_gradient_at(positions: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of the weight of a linear layer at flat positions only, shape (positions,).

    Args:
        positions: flat positions in the dense weight (outputs, inputs), int64.
        x: input of the layer, shape (..., inputs).
        gradient: gradient of its output, shape (..., outputs).

    Example:
        >>> x, gradient = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0, 5.0]])
        >>> linear_gradient_at(torch.tensor([0, 5]), x, gradient)
        tensor([ 3., 10.])
    """
    x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    row, column = positions // x.shape[1], positions % x.shape[1]
    return _dots(gradient.T.contiguous(), x.T.contiguous(), row, column)


def conv2d_gradient(x: Tensor, gradient: Tensor, shape: tuple[int, ...], geometry: Geometry) -> Tensor:
    """Return the gradient of the dense weight of a convolution, in its shape.

    Args:
        x: input of the layer, shape (N, C, H, W).
        gradient: gradient of its output, shape (N, O, H', W').
        shape: shape of the dense weight, (O, C / groups, height, width).
        geometry: stride, padding, dilation and groups.
    """
    dense: Tensor = conv2d_weight(x, shape, gradient, *geometry)  # type: ignore[no-untyped-call]
    return dense


def conv2d_gradient_at(
    positions: Tensor, x: Tensor, gradient: Tensor, shape: tuple[int, ...], geometry: Geometry
) -> Tensor:
    """Return the gradient of the weight of a convolution at flat positions only, shape (positions,).

    Args:
        positions: flat positions in the dense weight, int64.
        x: input of the layer, shape (N, C, H, W).
        gradient: gradient of its output, shape (N, O, H', W').
        shape: shape of the dense weight, (O, C / groups, height, width).
        geometry: stride, padding, dilation and groups.
    """
    outputs, channels, height, width = shape
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
