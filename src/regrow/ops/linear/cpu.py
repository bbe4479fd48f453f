"""Linear layer with a sparse weight by the compiled kernels: a convolution on a plane of one position."""

from __future__ import annotations

from torch import Tensor

from regrow.ops.conv2d.cpu import product
from regrow.ops.pattern import Geometry, Pattern

__all__ = ["linear"]

_GEOMETRY = Geometry()


def linear(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """Multiply tensors on the CPU; arguments as for `regrow.ops.sparse_linear`."""
    if x.dim() == 2:
        return product(x, values, bias, pattern, _GEOMETRY)
    output = product(x.reshape(-1, x.shape[-1]), values, bias, pattern, _GEOMETRY)
    return output.reshape(*x.shape[:-1], pattern.shape[0])
