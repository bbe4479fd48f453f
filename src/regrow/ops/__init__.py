"""Operations on sparse weights: one folder each, with its meaning in plain PyTorch."""

from regrow.ops.conv2d import sparse_conv2d
from regrow.ops.linear import sparse_linear

__all__ = ["sparse_conv2d", "sparse_linear"]
