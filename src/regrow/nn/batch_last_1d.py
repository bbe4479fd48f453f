"""Pools between sparse convolutions of one dimension, in the layout of these; each is computed as one of a plane."""

from __future__ import annotations

from torch import Tensor, nn

from regrow.nn.batch_last import BatchLast
from regrow.ops.pool import MOST_TAPS, max_pool2d, mean_pool2d

__all__ = ["BatchLastAdaptiveAvgPool1d", "BatchLastAvgPool1d", "BatchLastMaxPool1d"]


class BatchLastMaxPool1d(nn.MaxPool1d, BatchLast):
    """`nn.MaxPool1d`; see `serves` for the settings that it knows.

    Args:
        pool: the pool whose settings it takes over.
    """

    def __init__(self, pool: nn.MaxPool1d) -> None:
        super().__init__(pool.kernel_size, pool.stride, pool.padding)

    @staticmethod
    def serves(pool: nn.MaxPool1d) -> bool:
        """Return whether kernels exist for the settings of a pool."""
        plain = _one(pool.dilation) == 1 and not pool.ceil_mode and not pool.return_indices
        return plain and _one(pool.kernel_size) <= MOST_TAPS

    def to_ordinary(self) -> nn.MaxPool1d:
        """Return the ordinary pool."""
        return nn.MaxPool1d(self.kernel_size, self.stride, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Pool `x`, shape (N, C, L)."""
        if x.dim() != 3:
            output: Tensor = super().forward(x)
            return output
        kernel, stride, padding = map(_one, (self.kernel_size, self.stride, self.padding))
        return max_pool2d(x.unsqueeze(-1), (kernel, 1), (stride, 1), (padding, 0)).squeeze(-1)


class BatchLastAvgPool1d(nn.AvgPool1d, BatchLast):
    """`nn.AvgPool1d`; see `serves` for the settings that it knows.

    Args:
        pool: the pool whose settings it takes over.
    """

    def __init__(self, pool: nn.AvgPool1d) -> None:
        super().__init__(pool.kernel_size, pool.stride, pool.padding, False, pool.count_include_pad)

    @staticmethod
    def serves(pool: nn.AvgPool1d) -> bool:
        """Return whether kernels exist for the settings of a pool."""
        return not pool.ceil_mode

    def to_ordinary(self) -> nn.AvgPool1d:
        """Return the ordinary pool."""
        return nn.AvgPool1d(self.kernel_size, self.stride, self.padding, False, self.count_include_pad)

    def forward(self, x: Tensor) -> Tensor:
        """Pool `x`, shape (N, C, L)."""
        if x.dim() != 3:
            return super().forward(x)
        kernel, stride, padding = map(_one, (self.kernel_size, self.stride, self.padding))
        divisor = kernel if self.count_include_pad else None
        return mean_pool2d(x.unsqueeze(-1), (kernel, 1), (stride, 1), (padding, 0), divisor=divisor).squeeze(-1)


class BatchLastAdaptiveAvgPool1d(nn.AdaptiveAvgPool1d, BatchLast):
    """`nn.AdaptiveAvgPool1d` to one position.

    Args:
        pool: the pool whose settings it takes over.
    """

    def __init__(self, pool: nn.AdaptiveAvgPool1d) -> None:
        super().__init__(pool.output_size)

    @staticmethod
    def serves(pool: nn.AdaptiveAvgPool1d) -> bool:
        """Return whether a pool leaves one position."""
        return pool.output_size in (1, (1,))

    def to_ordinary(self) -> nn.AdaptiveAvgPool1d:
        """Return the ordinary pool."""
        return nn.AdaptiveAvgPool1d(self.output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Take the mean over the line of `x`, shape (N, C, L)."""
        if x.dim() != 3:
            return super().forward(x)
        line = (x.shape[2], 1)
        return mean_pool2d(x.unsqueeze(-1), line, line).squeeze(-1)


def _one(numbers: int | tuple[int, ...]) -> int:
    return numbers if isinstance(numbers, int) else numbers[0]
