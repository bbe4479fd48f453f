"""The immutable index structure of a sparse weight: which positions of the dense weight exist."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor


class Geometry(NamedTuple):
    """Stride, padding and dilation of a convolution, (height, width) each, and its groups."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which weights of a dense shape exist.

    Args:
        shape: shape of the dense weight: (outputs, inputs) or (outputs, inputs of a group, height, width).
        positions: sorted flat int64 positions of the weights that exist, on the CPU.

    Raises:
        ValueError: if the positions are not sorted, repeat, or leave the shape; or for a weight of another rank.
    """

    shape: tuple[int, ...]
    positions: Tensor

    def __post_init__(self) -> None:
        positions = self.positions
        if len(self.shape) not in (2, 4):
            raise ValueError(f"a pattern wants a weight of 2 or 4 dimensions, not of shape {self.shape}")
        if positions.dtype != torch.int64 or positions.dim() != 1:
            raise ValueError("positions must be a 1-D int64 tensor")
        if len(positions) and not (
            bool(positions[0] >= 0) and bool(positions[-1] < self.numel) and bool((positions.diff() > 0).all())
        ):
            raise ValueError(f"positions must be sorted, distinct and within the shape {self.shape}")

    @property
    def nonzeros(self) -> int:
        """How many weights exist."""
        return len(self.positions)

    @property
    def numel(self) -> int:
        """How many weights the dense weight has."""
        return prod(self.shape)
