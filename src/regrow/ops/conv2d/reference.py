"""The meaning of a convolution with a sparse weight, in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from regrow.ops.pattern import Geometry, Pattern

__all__ = ["conv2d", "dense_weight"]


def dense_weight(values: Tensor, pattern: Pattern) -> Tensor:
    """Return the dense weight: the values at their positions, zero elsewhere."""
    positions = pattern.positions.to(values.device)
    return values.new_zeros(pattern.numel).index_put((positions,), values).reshape(pattern.shape)


def conv2d(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, geometry: Geometry) -> Tensor:
    """Convolve with the dense weight; arguments as for `regrow.ops.sparse_conv2d`."""
    return F.conv2d(x, dense_weight(values, pattern), bias, *geometry)
