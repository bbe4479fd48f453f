"""Flat positions of a matrix as flat positions of its transpose."""

from __future__ import annotations

from torch import Tensor

__all__ = ["transposed"]


def transposed(positions: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return where elements of a matrix stand in its transpose, in the same order.

    Args:
        positions: flat positions, row-major.
        shape: rows and columns of the matrix.

    Example:
        >>> import torch
        >>> transposed(torch.tensor([1, 3]), (2, 3))
        tensor([2, 1])
    """
    rows, columns = shape
    return positions % columns * rows + positions // columns
