"""The windows of a plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from regrow.ops.native import LARGEST

__all__ = ["MOST_TAPS", "Window"]

# Which tap of a window was largest is kept in a byte.
MOST_TAPS = 256


class Window(NamedTuple):
    """The windows of a plane: kernel, stride and padding, each (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @property
    def taps(self) -> int:
        """How many positions a window has."""
        return self.kernel[0] * self.kernel[1]

    def check(self, shape: Sequence[int]) -> None:
        """Raise a ValueError unless the window fits an input of some shape."""
        kernel, stride, padding = self
        if len(shape) != 4:
            raise ValueError(f"pooling wants 4 dimensions (N, C, H, W), not {tuple(shape)}")
        if (
            min(*kernel, *stride) < 1
            or min(padding) < 0
            or any(2 * zeros > taps for zeros, taps in zip(padding, kernel, strict=True))
            or max(*kernel, *stride) > LARGEST
        ):
            raise ValueError(f"kernel and stride must be at least 1 and padding at most half the kernel, not {self}")
        if any(size + 2 * zeros < taps for size, zeros, taps in zip(shape[2:], padding, kernel, strict=True)):
            raise ValueError(f"a window of {kernel} does not fit an input of {tuple(shape)} with padding {padding}")

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the output, (N, C, H', W')."""
        return (*shape[:2], *(self.output_size(shape[2 + axis], axis) for axis in (0, 1)))

    def output_size(self, size: int, axis: int) -> int:
        """Return how many windows there are along an axis."""
        return (size + 2 * self.padding[axis] - self.kernel[axis]) // self.stride[axis] + 1
