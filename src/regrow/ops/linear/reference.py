"""The meaning of a linear layer with a sparse weight, in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from regrow.ops.conv2d.reference import dense_weight
from regrow.ops.pattern import Pattern

__all__ = ["linear"]


def linear(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """Multiply by the dense weight; arguments as for `regrow.ops.sparse_linear`."""
    return F.linear(x, dense_weight(values, pattern), bias)
