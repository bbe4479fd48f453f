"""The meaning of pooling, in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from regrow.ops.pool.window import Window

__all__ = ["max_pool2d", "mean_pool2d"]


def max_pool2d(x: Tensor, window: Window) -> Tensor:
    """Pool by PyTorch's own operation; arguments as for `regrow.ops.pool.max_pool2d`."""
    return F.max_pool2d(x, *window)


def mean_pool2d(x: Tensor, window: Window, divisor: int | None) -> Tensor:
    """Pool by PyTorch's own operation; arguments as for `regrow.ops.pool.mean_pool2d`."""
    return F.avg_pool2d(x, *window, count_include_pad=False, divisor_override=divisor)
