"""Operations on sparse weights and on what passes between sparse layers: meaning in plain PyTorch, and kernels."""

from regrow.ops.conv2d import sparse_conv2d
from regrow.ops.dropout import dropout
from regrow.ops.layout import batch_last, is_batch_last
from regrow.ops.linear import sparse_linear
from regrow.ops.normalise import normalise
from regrow.ops.pool import max_pool2d, mean_pool2d

__all__ = [
    "batch_last",
    "dropout",
    "is_batch_last",
    "max_pool2d",
    "mean_pool2d",
    "normalise",
    "sparse_conv2d",
    "sparse_linear",
]
