"""Maxima and means of windows, with the batch innermost."""

from __future__ import annotations

from torch import Tensor

from regrow.ops.eager import serves
from regrow.ops.native import kernels_serve
from regrow.ops.pool import eager, operators
from regrow.ops.pool.reference import max_pool2d_reference, mean_pool2d_reference
from regrow.ops.pool.run import MOST_TAPS, Window


def max_pool2d(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int] = (0, 0)
) -> Tensor:
    """Return the largest number of each window.

    Kernels serve float32 on the CPU, with windows of up to 256 numbers; their result has the batch innermost in memory
    (see `regrow.ops.layout`). Otherwise PyTorch's own operation is called.

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
    _check(x, window)
    if kernels_serve(x) and x.numel() and kernel[0] * kernel[1] <= MOST_TAPS:
        return eager.max_pool2d(x, window) if serves(x) else operators.max_pool2d(x, window)
    return max_pool2d_reference(x, window)


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
    _check(x, window)
    if divisor is not None and divisor < 1:
        raise ValueError(f"the divisor must be at least 1, not {divisor}")
    if kernels_serve(x) and x.numel():
        return (eager.mean_pool2d if serves(x) else operators.mean_pool2d)(x, window, divisor or 0)
    return mean_pool2d_reference(x, window, divisor)


def _check(x: Tensor, window: Window) -> None:
    if x.dim() != 4:
        raise ValueError(f"pooling wants 4 dimensions (N, C, H, W), not {tuple(x.shape)}")
    kernel, stride, padding = window
    if min(*kernel, *stride) < 1 or min(padding) < 0 or any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(f"kernel and stride must be at least 1 and padding at most half the kernel, not {window}")
    if any(size + 2 * p < k for size, p, k in zip(x.shape[2:], padding, kernel, strict=True)):
        raise ValueError(f"a window of {kernel} does not fit an input of {tuple(x.shape)} with padding {padding}")


__all__ = ["MOST_TAPS", "max_pool2d", "mean_pool2d"]
