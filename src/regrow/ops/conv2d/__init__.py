"""Convolution with a sparse weight."""

from __future__ import annotations

from torch import Tensor

from regrow.ops.conv2d.cpu import conv2d_cpu
from regrow.ops.conv2d.reference import conv2d_reference
from regrow.ops.native import kernels_serve
from regrow.ops.pattern import Geometry, Pattern


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: Pattern,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Convolve with a weight of which only some positions exist.

    Kernels serve float32 on the CPU; for anything else the weight is made dense. The result has the batch innermost
    in memory (see `regrow.ops.layout`) where kernels made it; `x` may have any layout and is copied only if its own
    is another.

    Args:
        x: input, shape (N, C, H, W).
        values: the weights that exist, in the order of `pattern.positions`.
        bias: one number for each output channel, or None.
        pattern: where the values stand in the dense weight (O, C / groups, height, width).
        stride: step of the kernel, (height, width).
        padding: zeros on both sides, (height, width).
        dilation: distance between taps, (height, width).
        groups: blocks into which the channels are divided.

    Returns:
        Output of shape (N, O, H', W').

    Raises:
        ValueError: if shapes do not fit.
    """
    geometry = Geometry(stride, padding, dilation, groups)
    _check(x, values, bias, pattern, geometry)
    if kernels_serve(x, values, bias):
        return conv2d_cpu(x, values, bias, pattern, geometry)
    return conv2d_reference(x, values, bias, pattern, geometry)


def _check(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, geometry: Geometry) -> None:
    if len(pattern.shape) != 4 or x.dim() != 4:
        raise ValueError(f"a convolution wants 4 dimensions: input {tuple(x.shape)}, weight {pattern.shape}")
    outputs, channels = pattern.shape[:2]
    if geometry.groups < 1 or outputs % geometry.groups or x.shape[1] != channels * geometry.groups:
        raise ValueError(f"input {tuple(x.shape)} and weight {pattern.shape} do not fit {geometry.groups} groups")
    if values.dim() != 1 or values.shape[0] != pattern.nonzeros:
        raise ValueError(f"{pattern.nonzeros} weights exist, but values have shape {tuple(values.shape)}")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != outputs):
        raise ValueError(f"{outputs} outputs want as many biases, not shape {tuple(bias.shape)}")
    if min(*geometry.stride, *geometry.dilation) < 1 or min(geometry.padding) < 0:
        raise ValueError(f"stride and dilation must be at least 1 and padding at least 0, not {geometry}")


__all__ = ["sparse_conv2d"]
