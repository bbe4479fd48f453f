"""Linear layer with a sparse weight."""

from __future__ import annotations

from torch import Tensor

from regrow.ops.linear.cpu import linear_cpu
from regrow.ops.linear.reference import linear_reference
from regrow.ops.native import kernels_serve
from regrow.ops.pattern import Pattern


def sparse_linear(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """Multiply by a weight of which only some positions exist.

    Kernels serve float32 on the CPU; for anything else the weight is made dense. A result of two dimensions has the
    batch innermost in memory, strides (1, N), where kernels made it; an input of that layout is not copied.

    Args:
        x: input, shape (..., inputs).
        values: the weights that exist, in the order of `pattern.positions`.
        bias: one number for each output, or None.
        pattern: where the values stand in the dense weight (outputs, inputs).

    Returns:
        Output of shape (..., outputs).

    Raises:
        ValueError: if shapes do not fit.
    """
    if len(pattern.shape) != 2 or x.dim() < 1 or x.shape[-1] != pattern.shape[1]:
        raise ValueError(f"input {tuple(x.shape)} does not fit a weight of shape {pattern.shape}")
    if values.dim() != 1 or values.shape[0] != pattern.nonzeros:
        raise ValueError(f"{pattern.nonzeros} weights exist, but values have shape {tuple(values.shape)}")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != pattern.shape[0]):
        raise ValueError(f"{pattern.shape[0]} outputs want as many biases, not shape {tuple(bias.shape)}")
    if kernels_serve(x, values, bias):
        return linear_cpu(x, values, bias, pattern)
    return linear_reference(x, values, bias, pattern)


__all__ = ["sparse_linear"]
