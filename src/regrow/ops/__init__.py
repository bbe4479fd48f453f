"""Operations on sparse weights: one folder each, with its meaning in plain PyTorch and its kernels."""

from regrow.ops.conv2d import sparse_conv2d
from regrow.ops.layout import batch_last, is_batch_last
from regrow.ops.linear import sparse_linear

__all__ = ["batch_last", "is_batch_last", "sparse_conv2d", "sparse_linear"]
