"""Linear layer with a sparse weight."""

from __future__ import annotations

from torch import Tensor

from regrow.ops.pattern import Pattern
from regrow.ops.select import Backends, as_activation

__all__ = ["sparse_linear"]

_backends = Backends(__name__)


def sparse_linear(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """Multiply by a weight of which only some positions exist.

    Kernels serve float32 on the CPU, and under autocast to bfloat16 take and give that; for anything else the weight is
    made dense. A result of two dimensions has the batch innermost in memory, strides (1, N), where kernels made it; an
    input of that layout is not copied. Of more dimensions, as those of tokens, it has the outputs innermost, unless it
    is wider than the input (and not three times as wide, as queries, keys and values in one are): that most likely goes
    on to a further linear layer.

    Args:
        x: input, shape (..., inputs).
        values: the weights that exist, in the order of `pattern.positions`.
        bias: one number for each output, or None.
        pattern: where the values stand in the dense weight (outputs, inputs).

    Returns:
        Output of shape (..., outputs).

    Raises:
        ValueError: if shapes or types of numbers do not fit.

    Example:
        >>> import torch
        >>> pattern = Pattern((2, 3), torch.tensor([0, 4]))
        >>> sparse_linear(torch.tensor([1.0, 10.0, 100.0]), torch.tensor([2.0, 5.0]), None, pattern)
        tensor([ 2., 50.])
    """
    shape = pattern.shape
    if len(shape) != 2 or x.dim() < 1 or x.shape[-1] != shape[1]:
        raise ValueError(f"input {tuple(x.shape)} does not fit a weight of shape {shape}")
    if values.shape != pattern.positions.shape:
        raise ValueError(f"{pattern.nonzeros} weights exist, but values have shape {tuple(values.shape)}")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != shape[0]):
        raise ValueError(f"{shape[0]} outputs want as many biases, not shape {tuple(bias.shape)}")
    x = as_activation(x, values)
    output: Tensor = _backends.select(x, weights=(values, bias), unit=pattern.unit).linear(x, values, bias, pattern)
    return output
