"""Maxima and means of windows, with the batch innermost."""

from __future__ import annotations

from torch import Tensor

from regrow.ops.pool.window import MOST_TAPS, Window
from regrow.ops.select import Backends

__all__ = ["MOST_TAPS", "max_pool2d", "mean_pool2d"]

_backends = Backends(__name__)


def max_pool2d(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int] = (0, 0)
) -> Tensor:
    """Return the largest number of each window.

    Kernels serve float32 and bfloat16 on the CPU, with windows of up to 256 numbers; their result has the batch
    innermost in memory (see `regrow.ops.layout`). Otherwise PyTorch's own operation is called.

    Args:
        x: input, shape (N, C, H, W).
        kernel: size of a window, (height, width).
        stride: step between windows, (height, width).
        padding: positions around the plane that count as minus infinity, (height, width); at most half the kernel.

    Returns:
        Output of shape (N, C, H', W').

    Raises:
        ValueError: if the window does not fit.

    Example:
        >>> import torch
        >>> max_pool2d(torch.arange(4.0).view(1, 1, 2, 2), (2, 2), (2, 2))
        tensor([[[[3.]]]])
    """
    window = Window(kernel, stride, padding)
    window.check(x.shape)
    output: Tensor = _backends.select(x).max_pool2d(x, window)
    return output


def mean_pool2d(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
    *,
    divisor: int | None = None,
) -> Tensor:
    """Return the mean of each window; arguments, layout and errors as for `max_pool2d`.

    Args:
        x: input, shape (N, C, H, W).
        kernel: size of a window, (height, width).
        stride: step between windows, (height, width).
        padding: zeros around the plane, (height, width); at most half the kernel.
        divisor: what sums are divided by; None is the number of positions of the window that are no padding.

    Example:
        >>> import torch
        >>> mean_pool2d(torch.arange(4.0).view(1, 1, 2, 2), (2, 2), (2, 2))
        tensor([[[[1.5000]]]])
    """
    window = Window(kernel, stride, padding)
    window.check(x.shape)
    if divisor is not None and divisor < 1:
        raise ValueError(f"the divisor must be at least 1, not {divisor}")
    output: Tensor = _backends.select(x).mean_pool2d(x, window, divisor)
    return output
