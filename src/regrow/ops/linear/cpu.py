"""Linear layer with a sparse weight by the compiled kernels: a convolution on a plane of one position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regrow.ops.autograd import direct
from regrow.ops.conv2d.cpu import product
from regrow.ops.layout import to_rows
from regrow.ops.pattern import Geometry, Pattern

__all__ = ["linear"]

_GEOMETRY = Geometry()
# Outputs for each input where one layer makes queries, keys and values.
_PROJECTIONS = 3


def linear(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """Multiply tensors on the CPU; arguments as for `regrow.ops.sparse_linear`."""
    if x.dim() == 2:
        return product(x, values, bias, pattern, _GEOMETRY)
    output = product(x.reshape(-1, x.shape[-1]), values, bias, pattern, _GEOMETRY)
    if _meets_rows(pattern) and not output.is_contiguous() and direct(x, values, bias):
        output = _InRows.apply(output)  # type: ignore[no-untyped-call]
    return output.reshape(*x.shape[:-1], pattern.shape[0])


def _meets_rows(pattern: Pattern) -> bool:
    """Return whether what takes the output most likely wants one sample after the other, as norms and attention do.

    In a transformer what is wider than its input goes through an activation into another linear layer, which takes
    either layout; all else goes to a residual stream, to attention or out of the network. PyTorch's operations on
    tensors of two layouts take several times as long as to copy one of them here.
    """
    outputs, inputs = pattern.shape
    return outputs <= inputs or outputs == _PROJECTIONS * inputs


class _InRows(torch.autograd.Function):
    """A tensor of shape (N, C) with one sample after the other."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return to_rows(x)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]
