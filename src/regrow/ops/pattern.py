"""The immutable index structure of a sparse weight: which positions exist, and in what order kernels visit them.

The parameter of a sparse layer is a vector of values, one for each existing position of the dense weight, in the
order of the flat positions. Kernels want the same positions grouped otherwise: by blocks of input channels small
enough for the first-level cache, the nonzeros of one output row together, and all of that once more for the
transposed weight, whose rows are the input channels. A `Pattern` builds each grouping when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from regrow.core.units import Units
from regrow.ops.blocking import choose_blocking, unit_blocking
from regrow.ops.native import kernels

__all__ = ["Blocks", "FilledUp", "Geometry", "Pattern", "rows_of_entry"]

# An offset within a block is stored in 16 bits.
_OFFSETS = 1 << 15
# How many outputs the kernels take as one entry.
_UNITS = (2, 4, 8)
# Kernels compute units of so many outputs faster than the single weights of a convolution, even where the units have so
# many times as many weights, some of them zeros that fill up.
_WHOLE_UNIT, _MOST_FILLED_UP = (4, 1), 1.1

_Kept = TypeVar("_Kept")


class Blocks(NamedTuple):
    """The nonzeros of one direction of a weight, grouped for the cache; every tensor is int32 but `offset`, int16.

    Entries are sorted by phase of the output (one, but for the transposed index of a strided convolution), block of
    input channels, and segment: the nonzeros of one output row in that block. Within a block segments of equal
    length stand together, longest first, so that the processor predicts where each ends. In the first block of a
    phase every output row has a segment, if need be an empty one.

    An entry is a nonzero, or a unit of nonzeros of some outputs that share an input; a segment is then of the rows of a
    unit.

    Attributes:
        order: for each entry, which of the parameter's values it is; of a unit, which its first is.
        offset: for each entry, channel within the block * taps + tap.
        segment_row: the output row of each segment, divided by the rows of an entry.
        segment_start: first entry of each segment, and the number of entries.
        block_start: first segment of each block of each phase, and the number of segments.
        blocking: channels of a block, 1 where the sweep walks over them, and the rows of an entry.
    """

    order: Tensor
    offset: Tensor
    segment_row: Tensor
    segment_start: Tensor
    block_start: Tensor
    blocking: Tensor


class Geometry(NamedTuple):
    """Stride, padding and dilation of a convolution, (height, width) each, and its groups."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def phase(self, kernel: tuple[int, int]) -> Tensor:
        """Return which inputs, modulo the stride, each tap's outputs read, int32: inputs of one phase share taps."""
        height, width = (
            (torch.arange(taps, dtype=torch.int32) * dilation - padding) % stride
            for taps, dilation, padding, stride in zip(kernel, self.dilation, self.padding, self.stride, strict=True)
        )
        return (height[:, None] * self.stride[1] + width).reshape(-1)


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which weights of a dense shape exist.

    Args:
        shape: shape of the dense weight: (outputs, inputs) or (outputs, inputs of a group, height, width).
        positions: sorted flat positions of the weights that exist, int32 or int64, on the CPU.
        unit: outputs and inputs of the blocks of weights that are dropped and grown whole.

    Raises:
        ValueError: if the positions are not sorted, repeat, leave the shape, or are not whole units; or for a weight
            of another rank.

    Example:
        >>> Pattern((4, 3), torch.tensor([1, 4]), unit=(2, 1)).density
        0.16666666666666666
    """

    shape: tuple[int, ...]
    positions: Tensor
    unit: tuple[int, int] = (1, 1)
    _cache: dict[object, Blocks] = field(default_factory=dict, init=False, repr=False)
    _kept: dict[object, Any] = field(default_factory=dict, init=False, repr=False)
    _filled_up: dict[int, FilledUp | None] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        positions = self.positions
        if len(self.shape) not in (2, 4):
            raise ValueError(f"a pattern wants a weight of 2 or 4 dimensions, not of shape {self.shape}")
        if positions.dtype not in (torch.int32, torch.int64) or positions.dim() != 1:
            raise ValueError("positions must be a 1-D tensor of int32 or int64")
        if len(positions) > torch.iinfo(torch.int32).max:
            raise ValueError(f"at most 2**31 - 1 weights can exist in one layer, not {len(positions)}")
        if prod(self.kernel) > _OFFSETS:
            raise ValueError(f"a kernel of {self.kernel} has more than {_OFFSETS} taps")
        if len(positions) and not (
            bool(positions[0] >= 0) and bool(positions[-1] < self.numel) and bool((positions.diff() > 0).all())
        ):
            raise ValueError(f"positions must be sorted, distinct and within the shape {self.shape}")
        if self.unit != (1, 1):
            self._check_units()

    @staticmethod
    def of_mask(mask: Tensor, unit: tuple[int, int] = (1, 1)) -> Pattern:
        """Return the pattern of a bool tensor that is true where a weight exists."""
        return Pattern(tuple(mask.shape), mask.reshape(-1).nonzero().squeeze(1).cpu(), unit)

    @property
    def nonzeros(self) -> int:
        """How many weights exist."""
        return self.positions.shape[0]

    def __deepcopy__(self, _: object) -> Pattern:
        return self  # nothing of it changes

    def __reduce__(self) -> tuple[type[Pattern], tuple[Any, ...]]:
        return Pattern, (self.shape, self.positions, self.unit)

    @property
    def numel(self) -> int:
        """How many weights the dense weight has."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the positions and of what was made of them so far."""
        made = sum(tensor.nbytes for blocks in self._cache.values() for tensor in blocks)
        filled_up = sum(found.pattern.nbytes + found.places.nbytes for found in self._filled_up.values() if found)
        return self.positions.nbytes + made + filled_up

    @property
    def density(self) -> float:
        """Share of the weights that exist."""
        return self.nonzeros / self.numel if self.numel else 0.0

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width of the kernel; a linear weight has one tap."""
        return (self.shape[2], self.shape[3]) if len(self.shape) == 4 else (1, 1)

    def forward_blocks(self, geometry: Geometry) -> Blocks:
        """Return the grouping by output row, which the forward pass and the values' gradient use."""
        key = ("forward", geometry.dilation, geometry.stride, geometry.groups)
        if key not in self._cache:
            self._cache[key] = self._group(geometry, transposed=False)
        return self._cache[key]

    def transposed_blocks(self, geometry: Geometry) -> Blocks:
        """Return the grouping by input channel, which the input's gradient uses."""
        key = ("transposed", geometry)
        if key not in self._cache:
            self._cache[key] = self._group(geometry, transposed=True)
        return self._cache[key]

    def index_of_product(self, geometry: Geometry, *, input_gradient: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Return the index structure that a product takes, and that of the input's gradient, empty where not needed.

        Where whole units are filled up, `places` follows on the tensors of `Blocks`.

        Args:
            geometry: stride, padding, dilation and groups.
            input_gradient: whether a gradient of the input may be asked for.
        """
        filled_up = self.filled_up(geometry.groups)
        if filled_up is not None:
            return [*filled_up.pattern.forward_blocks(geometry), filled_up.places], []
        transposed = input_gradient and self.rows_of_entry(geometry.groups) == 1
        return list(self.forward_blocks(geometry)), list(self.transposed_blocks(geometry)) if transposed else []

    def rows_of_entry(self, groups: int) -> int:
        """Return how many outputs the kernels take as one entry: those of a unit, or one.

        Kernels for units have no transposed grouping.
        """
        return rows_of_entry(self.shape, self.unit, groups)

    def filled_up(self, groups: int) -> FilledUp | None:
        """Return the whole units in which a convolution's weights lie, if the kernels compute those in less time."""
        if groups not in self._filled_up:
            self._filled_up[groups] = self._fill_up(groups)
        return self._filled_up[groups]

    def keep(self, key: object, make: Callable[[], _Kept]) -> _Kept:
        """Return what a backend keeps with the pattern under a key; made when it is first asked for."""
        kept: _Kept | None = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = make()
        return kept

    def _fill_up(self, groups: int) -> FilledUp | None:
        rows = _WHOLE_UNIT[0]
        if len(self.shape) == 2 or self.unit != (1, 1) or self.shape[0] // groups % rows:
            return None
        if not self.nonzeros or self.numel > _MOST_FILLED_UP * rows * self.nonzeros:
            return None
        units = Units(self.shape, _WHOLE_UNIT)
        weights = torch.zeros(self.numel, dtype=torch.bool)
        weights[self.positions.long()] = True
        numbers = weights.view(-1, rows, self.numel // self.shape[0]).any(dim=1).reshape(-1).nonzero().squeeze(1)
        if len(numbers) * rows > _MOST_FILLED_UP * self.nonzeros:
            return None
        positions = units.positions_of(numbers).sort().values
        places = torch.searchsorted(positions, self.positions.long(), out_int32=True)
        return FilledUp(Pattern(self.shape, positions.to(self.positions.dtype), _WHOLE_UNIT), places)

    def _check_units(self) -> None:
        """Raise a ValueError unless the positions are whole units."""
        Units(self.shape, self.unit).numbers_of(self.positions.long())

    def _group(self, geometry: Geometry, *, transposed: bool) -> Blocks:
        """Group the nonzeros by phase, block of channels and row."""
        inputs = self.shape[1] * geometry.groups
        rows, channels = (inputs, self.shape[0]) if transposed else (self.shape[0], inputs)
        unit, linear = 1 if transposed else self.rows_of_entry(geometry.groups), len(self.shape) == 2
        if unit > 1:
            blocking = unit_blocking(channels, self.kernel, geometry.dilation, geometry.stride, unit, linear)
        else:
            blocking = choose_blocking(
                rows, channels, self.nonzeros, self.kernel, geometry.dilation, geometry.stride, transposed, linear
            )
        phase = geometry.phase(self.kernel) if transposed and geometry.stride != (1, 1) else None
        positions = self.positions.contiguous()
        made = kernels().group(
            positions=positions.data_ptr(), wide=positions.dtype == torch.int64, nonzeros=self.nonzeros,
            outputs=self.shape[0], channels=self.shape[1], taps=prod(self.kernel), groups=geometry.groups,
            transposed=transposed, channels_per_block=blocking.channels_per_block,
            phase=0 if phase is None else phase.data_ptr(), phases=1 if phase is None else prod(geometry.stride),
            unit=unit,
        )  # fmt: skip
        order, offset, segment_row, segment_start, block_start = made
        choice = torch.tensor(blocking, dtype=torch.int32)
        return Blocks(order, offset, segment_row, segment_start, block_start, choice)


class FilledUp(NamedTuple):
    """The whole units in which the weights of another pattern lie.

    Attributes:
        pattern: of the units.
        places: for each weight of the other pattern, which of this one's it is, int32.
    """

    pattern: Pattern
    places: Tensor


def rows_of_entry(shape: Sequence[int], unit: tuple[int, int], groups: int = 1) -> int:
    """Return how many outputs the kernels take as one entry: those of a unit, or one.

    Args:
        shape: shape of the dense weight, outputs first.
        unit: outputs and inputs of a unit.
        groups: blocks into which the channels are divided; a unit must not lie across them.

    Example:
        >>> rows_of_entry((64, 32, 3, 3), (4, 1)), rows_of_entry((64, 32, 3, 3), (4, 2))
        (4, 1)
    """
    rows, columns = unit
    return rows if columns == 1 and rows in _UNITS and shape[0] // groups % rows == 0 else 1
