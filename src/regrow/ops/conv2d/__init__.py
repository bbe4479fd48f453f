"""Convolution with a sparse weight."""

from __future__ import annotations

import torch
from torch import Tensor

from regrow.ops.native import LARGEST
from regrow.ops.pattern import Geometry, Pattern
from regrow.ops.select import Backends, as_activation

__all__ = ["sparse_conv2d"]

_backends = Backends(__name__)


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

    Kernels serve float32 on the CPU, and under autocast to bfloat16 take and give that; for anything else the weight is
    made dense. The result has the batch innermost in memory (see `regrow.ops.layout`) where kernels made it; `x` may
    have any layout and is copied only if its own is another.

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
        ValueError: if shapes or types of numbers do not fit.
        RuntimeError: if the kernel does not fit the padded plane.

    Example:
        >>> import torch
        >>> pattern = Pattern((1, 1, 2, 2), torch.tensor([3]))
        >>> sparse_conv2d(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([2.0]), None, pattern)
        tensor([[[[8.]]]])
    """
    geometry = Geometry(stride, padding, dilation, groups)
    if torch.compiler.is_compiling():
        _checked(pattern, geometry)
    else:
        pattern.keep(("checked", geometry), lambda: _checked(pattern, geometry))
    outputs, channels, *_ = pattern.shape
    if x.dim() != 4 or x.shape[1] != channels * groups:
        raise ValueError(f"input {tuple(x.shape)} and weight {pattern.shape} do not fit {groups} groups")
    if values.shape != pattern.positions.shape:
        raise ValueError(f"{pattern.nonzeros} weights exist, but values have shape {tuple(values.shape)}")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != outputs):
        raise ValueError(f"{outputs} outputs want as many biases, not shape {tuple(bias.shape)}")
    x = as_activation(x, values)
    backend = _backends.select(x, weights=(values, bias), unit=pattern.unit)
    output: Tensor = backend.conv2d(x, values, bias, pattern, geometry)
    return output


def _checked(pattern: Pattern, geometry: Geometry) -> bool:
    """Raise a ValueError unless a geometry fits a pattern."""
    stride, padding, dilation, groups = geometry
    if len(pattern.shape) != 4:
        raise ValueError(f"a convolution wants a weight of 4 dimensions, not of shape {pattern.shape}")
    if groups < 1 or pattern.shape[0] % groups:
        raise ValueError(f"the outputs of a weight of shape {pattern.shape} do not divide into {groups} groups")
    if min(*stride, *dilation) < 1 or min(padding) < 0:
        raise ValueError(f"stride and dilation must be at least 1 and padding at least 0, not {geometry}")
    reach = [step * taps for step, taps in zip(dilation, pattern.kernel, strict=True)]
    if max(*stride, *padding, *reach) > LARGEST:
        raise ValueError(f"stride, padding and dilation times kernel must be at most {LARGEST}, not {geometry}")
    return True
