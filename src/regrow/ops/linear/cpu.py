"""Linear layer with a sparse weight by the compiled kernels: a convolution on a plane of one position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regrow.ops.autograd import direct
from regrow.ops.conv2d.cpu import product
from regrow.ops.layout import is_batch_last, to_rows
from regrow.ops.pattern import Geometry, Pattern

__all__ = ["linear"]

_GEOMETRY = Geometry()
# Outputs for each input where one layer makes queries, keys and values.
_PROJECTIONS = 3


def linear(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """Multiply tensors on the CPU; arguments as for `regrow.ops.sparse_linear`."""
    if x.dim() == 2:
        return product(x, values, bias, pattern, _GEOMETRY)
    rows = x.reshape(-1, x.shape[-1])
    plain = direct(x, values, bias)
    if plain and x.requires_grad and not is_batch_last(rows):
        rows = _ThroughRows.apply(rows, False)  # type: ignore[no-untyped-call]
    output = product(rows, values, bias, pattern, _GEOMETRY)
    if plain and _meets_rows(pattern) and not output.is_contiguous():
        output = _ThroughRows.apply(output, True)  # type: ignore[no-untyped-call]
    return output.reshape(*x.shape[:-1], pattern.shape[0])


def _meets_rows(pattern: Pattern) -> bool:
    """Return whether what takes the output most likely wants one sample after the other, as norms and attention do.

    In a transformer what is wider than its input goes through an activation into another linear layer, which takes
    either layout; all else goes to a residual stream, to attention or out of the network. PyTorch's operations on
    tensors of two layouts take several times as long as to copy one of them here.
    """
    outputs, inputs = pattern.shape
    return outputs <= inputs or outputs == _PROJECTIONS * inputs


class _ThroughRows(torch.autograd.Function):
    """The tensor itself, shape (N, C), of which the value or else the gradient has one sample after the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: bool) -> Tensor:
        ctx.value = value
        return to_rows(x) if value else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient if ctx.value else to_rows(gradient), None
