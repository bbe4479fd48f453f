"""Linear layer with a sparse weight by the compiled kernels: a convolution on a plane of one position."""

from __future__ import annotations

from torch import Tensor

from regrow.ops.conv2d import eager, operators
from regrow.ops.eager import serves
from regrow.ops.pattern import Geometry, Pattern


def linear_cpu(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """Multiply float32 tensors on the CPU; arguments as for `regrow.ops.sparse_linear`."""
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if serves(x, values, bias):
        output = eager.convolve(rows, values, bias, pattern, Geometry())
    else:
        # Squeezed, not indexed: the gradient of indexing fills a tensor of zeros.
        plane = rows.unsqueeze(-1).unsqueeze(-1)
        output = operators.convolve(plane, values, bias, pattern, Geometry()).squeeze(-1).squeeze(-1)
    return output if x.dim() == 2 else output.reshape(*x.shape[:-1], pattern.shape[0])
