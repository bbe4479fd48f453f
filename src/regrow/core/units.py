"""Units: the blocks of weights that are dropped and grown whole, by number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Units", "fitting_unit"]


@dataclass(frozen=True)
class Units:
    """The units of one dense weight.

    A unit is a block along the first two dimensions of the weight, at one position of the remaining ones (the
    kernel). Units are numbered row-major over their grid. For units of one weight, numbers are flat positions.

    Attributes:
        shape: shape of the dense weight; a vector counts as having one input.
        unit: outputs and inputs of a unit, divisors of the first two sides of `shape`.

    Raises:
        ValueError: if the weight has no dimension, or the unit does not divide its sides.

    Example:
        >>> units = Units((4, 6), unit=(2, 1))
        >>> units.size, units.count
        (2, 12)
        >>> units.positions_of(torch.tensor([0, 7]))
        tensor([ 0,  6, 13, 19])
    """

    shape: tuple[int, ...]
    unit: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if not self.shape:
            raise ValueError("a single number has no units: a weight has at least one dimension")
        sides = self.shape[0], self._inputs
        if min(self.unit) < 1 or any(side % asked for side, asked in zip(sides, self.unit, strict=True)):
            raise ValueError(
                f"units of {self.unit} do not divide {sides} outputs and inputs: "
                f"take fitting_unit({sides}, {self.unit})"
            )

    @property
    def size(self) -> int:
        """Weights in a unit."""
        return self.unit[0] * self.unit[1]

    @property
    def count(self) -> int:
        """Units in the weight."""
        return self.numel // self.size

    @property
    def numel(self) -> int:
        """Weights in all units together."""
        return math.prod(self.shape)

    def numbers_of(self, positions: Tensor) -> Tensor:
        """Return the numbers of the units that the weights at `positions` make up, sorted.

        Args:
            positions: sorted distinct flat positions, int64, shape (n * size,).

        Raises:
            ValueError: if some unit is there in part only.

        Example:
            >>> Units((4, 6), unit=(2, 1)).numbers_of(torch.tensor([0, 6, 13, 19]))
            tensor([0, 7])
        """
        if self.size == 1:
            return positions
        row = positions // (self._inputs * self._kernel)
        column = positions // self._kernel % self._inputs
        first = (row % self.unit[0] == 0) & (column % self.unit[1] == 0)
        row, column, kernel = row[first], column[first], positions[first] % self._kernel
        grid = row // self.unit[0] * (self._inputs // self.unit[1]) + column // self.unit[1]
        numbers = (grid * self._kernel + kernel).sort().values
        if not torch.equal(self.positions_of(numbers).sort().values, positions):
            raise ValueError(
                f"these positions are no whole units of {self.unit[0]} outputs by {self.unit[1]} inputs in a weight of "
                f"shape {self.shape}: give all weights of a unit or none"
            )
        return numbers

    def positions_of(self, numbers: Tensor) -> Tensor:
        """Return the flat positions of units, unit after unit and row-major within each, int64, shape (n * size,).

        Args:
            numbers: numbers of units, int64, shape (n,).
        """
        if self.size == 1:
            return numbers
        rows, columns = self.unit
        grid, kernel = numbers // self._kernel, numbers % self._kernel
        per_row = self._inputs // columns
        first = (grid // per_row * rows * self._inputs + grid % per_row * columns) * self._kernel + kernel
        row, column = (torch.arange(side, device=numbers.device) for side in self.unit)
        within = (row[:, None] * self._inputs + column) * self._kernel
        return (first[:, None] + within.flatten()).flatten()

    def arrange(self, dense: Tensor) -> Tensor:
        """Return a number for every weight, unit after unit, shape (count * size,); `dense` itself for single weights.

        Args:
            dense: a number for every weight, flat row-major, shape (numel,).
        """
        if self.size == 1:
            return dense
        rows, columns = self.unit
        grid = dense.reshape(self.shape[0] // rows, rows, self._inputs // columns, columns, self._kernel)
        return grid.permute(0, 2, 4, 1, 3).reshape(-1)

    @property
    def _inputs(self) -> int:
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def _kernel(self) -> int:
        return math.prod(self.shape[2:])


def fitting_unit(sides: tuple[int, int], unit: tuple[int, int]) -> tuple[int, int]:
    """Return for each side the largest divisor that is not above what was asked for.

    Args:
        sides: outputs and inputs of the weight.
        unit: outputs and inputs of a unit as asked for, at least 1.

    Raises:
        ValueError: if a side of the unit is less than 1.

    Example:
        >>> fitting_unit((10, 64), (4, 1))
        (2, 1)
    """
    if min(unit) < 1:
        raise ValueError(f"units of {unit} are not possible: a unit has at least one output and one input")
    rows, columns = (
        next(divisor for divisor in range(min(side, asked), 0, -1) if side % divisor == 0) if side else 1
        for side, asked in zip(sides, unit, strict=True)
    )
    return rows, columns
