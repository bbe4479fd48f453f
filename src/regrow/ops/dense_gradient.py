"""The gradient of a weight at all its positions, by PyTorch's own products."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil, prod

import torch
from torch import Tensor

from regrow.ops.layout import allocate_flat, is_batch_last, to_channels_last
from regrow.ops.pattern import Geometry

__all__ = ["conv2d_dense", "linear_dense"]

# Numbers of activations that are copied, and of gradients that are made, for a part of a convolution's gradient.
_COPIED, _MADE = 1 << 22, 1 << 20
# Outputs of a part are a multiple of so many, which oneDNN takes together.
_OUTPUTS = 64
# On planes of up to so many positions products of matrices, tap by tap, are quicker than a convolution: they leave out
# the padding, which is much of such a plane. In single precision all the same: half precision gains less there.
_SMALL_PLANE = {torch.float32: 64, torch.bfloat16: 16}


def linear_dense(x: Tensor, gradient: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the gradient of all positions of a linear weight, flat.

    Args:
        x: input of the layer, shape (samples, inputs).
        gradient: gradient of its output, shape (samples, outputs).
        dtype: of the result; None for that of `x`.

    Example:
        >>> linear_dense(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([3., 6., 4., 8.])
    """
    shape = (gradient.shape[1], x.shape[1])
    # Backward frees activations as it makes gradients: there is room for these, and no fresh pages have to be cleared.
    result = allocate_flat(x, prod(shape), dtype)
    if result.dtype is x.dtype:
        torch.mm(gradient.T, x, out=result.view(shape))
    else:
        result.view(shape).copy_(gradient.T @ x)
    return result


def conv2d_dense(
    x: Tensor, gradient: Tensor, weight_shape: Sequence[int], geometry: Geometry, dtype: torch.dtype | None = None
) -> Tensor:
    """Return the gradient of all positions of a convolution's weight, flat.

    Args:
        x: input of the layer, shape (N, C, H, W).
        gradient: gradient of its output, of the same type, shape (N, O, H', W').
        weight_shape: of the dense weight.
        geometry: stride, padding, dilation and groups.
        dtype: of the result; None for that of `x`.

    Example:
        >>> x, gradient = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 4.0]]]])
        >>> conv2d_dense(x, gradient, (1, 1, 1, 3), Geometry(padding=(0, 1)))
        tensor([ 4., 11.,  6.])
    """
    # Backward frees activations as it makes gradients: there is room for these. What comes beside is made in parts.
    result = allocate_flat(x, prod(weight_shape), dtype)
    if not x.shape[0]:
        return result.zero_()
    dense, outputs = result.view(tuple(weight_shape)), weight_shape[0]
    parts = 1 if geometry.groups > 1 else max(1, ceil(dense.numel() / _MADE))
    rows = _OUTPUTS * ceil(outputs / parts / _OUTPUTS)
    if _suits_matrices(x, gradient, geometry, result.dtype):
        x, gradient = x.float(), gradient.float()
        for row in range(0, outputs, rows):
            _by_taps(x, gradient[:, row : row + rows], geometry, dense[row : row + rows])
        return result
    sample = max(x[0].numel(), gradient[0].numel())
    samples = x.shape[0] if result.dtype.itemsize < 4 else max(1, _COPIED // sample)
    for first, row in product(range(0, x.shape[0], samples), range(0, outputs, rows)):
        # oneDNN is fast with channels last, and slow to get there from the batch innermost.
        if not row:
            some = to_channels_last(x[first : first + samples])
        of_some = to_channels_last(gradient[first : first + samples, row : row + rows])
        into = dense[row : row + rows]
        part = _by_convolution(some, of_some, into.shape, geometry)
        if first:
            into.add_(part)
        else:
            into.copy_(part)
    return result


def _by_convolution(x: Tensor, gradient: Tensor, weight_shape: Sequence[int], geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    weight = x.new_empty(1).expand(*weight_shape)  # only its shape is read
    part: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (False, True, False)
    )[1]
    return part


def _suits_matrices(x: Tensor, gradient: Tensor, geometry: Geometry, dtype: torch.dtype) -> bool:
    """Return whether products of matrices give the gradient of a convolution in less time."""
    plain = geometry.stride == (1, 1) and geometry.groups == 1 and x.device.type == "cpu"
    small = prod(gradient.shape[2:]) <= _SMALL_PLANE.get(x.dtype, 0)
    return plain and small and dtype is torch.float32 and is_batch_last(x) and is_batch_last(gradient)


def _by_taps(x: Tensor, gradient: Tensor, geometry: Geometry, into: Tensor) -> None:
    """Write the gradient of some outputs: for each tap the product of output gradients with the inputs that it reads.

    Args:
        x: batch-last, shape (N, C, H, W).
        gradient: some channels of what is batch-last, shape (N, some, H', W').
        geometry: with a stride of one.
        into: shape (some, C, height, width).
    """
    _, padding, dilation, _ = geometry
    x, gradient = x.movedim(0, -1), gradient.movedim(0, -1)
    taps = x.new_empty(*into.shape[2:], *into.shape[:2])
    for tap in product(*map(range, into.shape[2:])):
        shift = [at * step - border for at, step, border in zip(tap, dilation, padding, strict=True)]
        (top, bottom), (left, right) = (
            (max(0, -by), min(outputs, inputs - by))
            for by, outputs, inputs in zip(shift, gradient.shape[1:3], x.shape[1:3], strict=True)
        )
        part = taps[tap]
        if top >= bottom or left >= right:  # it reads padding alone
            part.zero_()
            continue
        whole = right - left == x.shape[2] == gradient.shape[2]  # rows of both then follow on one another
        height = bottom - top if whole else 1
        for row in range(top, bottom, height):
            given = gradient[:, row : row + height, left:right].flatten(1)
            read = x[:, row + shift[0] : row + shift[0] + height, left + shift[1] : right + shift[1]].flatten(1)
            torch.addmm(part, given, read.T, beta=int(row > top), out=part)
    into.copy_(taps.permute(2, 3, 0, 1))
