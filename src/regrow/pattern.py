"""The immutable index structure of a sparse weight: which positions exist, and in what order kernels visit them.

The parameter of a sparse layer is a vector of values, one for each existing position of the dense weight, in the
order of the flat positions. Kernels want the same positions grouped otherwise: by blocks of input channels small
enough for the first-level cache, the nonzeros of one output row together, and all of that once more for the
transposed weight, whose rows are the input channels. A `Pattern` builds each grouping when it is first asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from regrow.blocking import Blocking, choose_blocking

# A place within a block is stored in 16 bits.
_PLACES = 1 << 15


class Blocks(NamedTuple):
    """The nonzeros of one direction of a weight, grouped for the cache; every tensor is int32 but `place`, int16.

    Entries are sorted by phase of the output (one, but for the transposed index of a strided convolution), block of
    input channels, and segment: the nonzeros of one output row in that block. Within a block segments of equal
    length stand together, longest first, so that the processor predicts where each ends. In the first block of a
    phase every output row has a segment, if need be an empty one.

    Attributes:
        order: for each entry, which of the parameter's values it is.
        place: for each entry, channel within the block * taps + tap.
        segment_row: the output row of each segment.
        segment_start: first entry of each segment, and the number of entries.
        block_start: first segment of each block of each phase, and the number of segments.
        blocking: channels of a block, and 1 where the sweep walks over them.
    """

    order: Tensor
    place: Tensor
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


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which weights of a dense shape exist.

    Args:
        shape: shape of the dense weight: (outputs, inputs) or (outputs, inputs of a group, height, width).
        positions: sorted flat positions of the weights that exist, int32 or int64, on the CPU.

    Raises:
        ValueError: if the positions are not sorted, repeat, or leave the shape; or for a weight of another rank.
    """

    shape: tuple[int, ...]
    positions: Tensor
    _cache: dict[object, Blocks] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        positions = self.positions
        if len(self.shape) not in (2, 4):
            raise ValueError(f"a pattern wants a weight of 2 or 4 dimensions, not of shape {self.shape}")
        if positions.dtype not in (torch.int32, torch.int64) or positions.dim() != 1:
            raise ValueError("positions must be a 1-D tensor of int32 or int64")
        if len(positions) > torch.iinfo(torch.int32).max:
            raise ValueError(f"at most 2**31 - 1 weights can exist in one layer, not {len(positions)}")
        if prod(self.kernel) > _PLACES:
            raise ValueError(f"a kernel of {self.kernel} has more than {_PLACES} taps")
        if len(positions) and not (
            bool(positions[0] >= 0) and bool(positions[-1] < self.numel) and bool((positions.diff() > 0).all())
        ):
            raise ValueError(f"positions must be sorted, distinct and within the shape {self.shape}")

    @staticmethod
    def of_mask(mask: Tensor) -> Pattern:
        """Return the pattern of a bool tensor that is true where a weight exists."""
        return Pattern(tuple(mask.shape), mask.reshape(-1).nonzero().squeeze(1).cpu())

    @property
    def nonzeros(self) -> int:
        """How many weights exist."""
        return len(self.positions)

    @property
    def numel(self) -> int:
        """How many weights the dense weight has."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the positions and of the groupings made so far."""
        return self.positions.nbytes + sum(tensor.nbytes for blocks in self._cache.values() for tensor in blocks)

    @property
    def density(self) -> float:
        """Share of the weights that exist."""
        return self.nonzeros / self.numel if self.numel else 0.0

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width of the kernel; a linear weight has one tap."""
        return (self.shape[2], self.shape[3]) if len(self.shape) == 4 else (1, 1)

    @property
    def row_pointers(self) -> Tensor:
        """Where the nonzeros of each output row start, and their number: int64, one longer than the rows."""
        first = torch.arange(self.shape[0] + 1) * (self.numel // max(1, self.shape[0]))
        return torch.searchsorted(self.positions.long(), first)

    @property
    def columns(self) -> Tensor:
        """Position of each nonzero within its output row: int32."""
        return (self.positions % max(1, prod(self.shape[1:]))).int()

    def forward_blocks(self, geometry: Geometry) -> Blocks:
        """Return the grouping by output row, which the forward pass and the values' gradient use."""
        key = ("forward", geometry.dilation, geometry.stride, geometry.groups)
        if key not in self._cache:
            row, channel, tap = self._coordinates(geometry.groups)
            channels = self.shape[1] * geometry.groups
            self._cache[key] = self._group(row, channel, tap, None, self.shape[0], channels, geometry, transposed=False)
        return self._cache[key]

    def transposed_blocks(self, geometry: Geometry) -> Blocks:
        """Return the grouping by input channel, which the input's gradient uses."""
        key = ("transposed", geometry)
        if key not in self._cache:
            row, channel, tap = self._coordinates(geometry.groups)
            phase = self._phase(tap, geometry) if geometry.stride != (1, 1) else None
            channels = self.shape[1] * geometry.groups
            self._cache[key] = self._group(channel, row, tap, phase, channels, self.shape[0], geometry, transposed=True)
        return self._cache[key]

    def _group(
        self, row: Tensor, channel: Tensor, tap: Tensor, phase: Tensor | None, rows: int, channels: int,
        geometry: Geometry, transposed: bool,
    ) -> Blocks:  # fmt: skip
        """Group the nonzeros, whose coordinates are changed, by phase, block of channels and row."""
        blocking = choose_blocking(
            rows, channels, self.nonzeros, self.kernel, geometry.dilation, geometry.stride, transposed,
            linear=len(self.shape) == 2,
        )  # fmt: skip
        per_block = blocking.channels_per_block
        phases, blocks = 1 if phase is None else prod(geometry.stride), -(-channels // per_block)
        place = tap.add_(channel % per_block, alpha=prod(self.kernel)).short()
        # Sorting is most of the work, and takes half as long where 32 bits are enough.
        fits = phases * blocks * rows <= torch.iinfo(torch.int32).max
        key = (channel if fits else channel.long()).floor_divide_(per_block).mul_(rows).add_(row)
        if phase is not None:
            key.add_(phase, alpha=blocks * rows)
        return _sorted_blocks(key, place, rows, phases, blocks, blocking)

    def _coordinates(self, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return output row, input channel (over all groups) and tap of each nonzero, int32 each and new."""
        taps = prod(self.kernel)
        tap = (self.positions % taps).int()
        channel = self.positions // taps
        row = (channel // self.shape[1]).int()
        channel = channel.remainder_(self.shape[1]).int()
        if groups > 1:
            channel += row // (self.shape[0] // groups) * self.shape[1]
        return row, channel, tap

    def _phase(self, tap: Tensor, geometry: Geometry) -> Tensor:
        """Return which inputs, modulo the stride, a tap's outputs read: inputs of one phase share their taps."""
        height, width = (
            (torch.arange(taps) * dilation - padding) % stride
            for taps, dilation, padding, stride in zip(
                self.kernel, geometry.dilation, geometry.padding, geometry.stride, strict=True
            )
        )
        return (height[:, None] * geometry.stride[1] + width).reshape(-1)[tap]


def _sorted_blocks(key: Tensor, place: Tensor, rows: int, phases: int, blocks: int, blocking: Blocking) -> Blocks:
    """Return the blocks of nonzeros, given in the order of the values.

    Args:
        key: (phase * blocks + block) * rows + row of each nonzero.
        place: place of each nonzero within its block.
        rows: output rows.
        phases: of the output.
        blocks: blocks of one phase.
        blocking: what was chosen for them.
    """
    key, long_order = torch.sort(key, stable=True)
    order = long_order.int()
    del long_order
    segment, length = torch.unique_consecutive(key, return_counts=True)
    del key
    start = length.cumsum(0) - length
    missing = _rows_without_segment(segment, rows, blocks, phases)
    segment = torch.cat([segment, missing.to(segment.dtype)])
    length, start = (torch.cat([tensor, torch.zeros_like(missing)]) for tensor in (length, start))

    # Segments anew: within a group from the longest to the shortest.
    group = (segment // max(1, rows)).long()
    longest = int(length.max()) if len(length) else 0
    by_length = torch.argsort(group * (longest + 1) + longest - length, stable=True)
    segment, length, start, group = segment[by_length], length[by_length], start[by_length], group[by_length]
    new_start = torch.zeros(len(length) + 1, dtype=torch.int64)
    torch.cumsum(length, 0, out=new_start[1:])
    source = (start - new_start[:-1]).int().repeat_interleave(length, output_size=len(order))
    order = order[source.add_(torch.arange(len(order), dtype=torch.int32))]
    del source

    return Blocks(
        order=order,
        place=place[order],
        segment_row=(segment % max(1, rows)).int(),
        segment_start=new_start.int(),
        block_start=torch.searchsorted(group, torch.arange(phases * blocks + 1)).int(),
        blocking=torch.tensor(blocking, dtype=torch.int32),
    )


def _rows_without_segment(segment: Tensor, rows: int, blocks: int, phases: int) -> Tensor:
    """Return the keys of the segments that the first block of each phase lacks, int64."""
    first = segment[segment // max(1, rows) % max(1, blocks) == 0].long()
    has = torch.zeros(phases * rows, dtype=torch.bool)
    has[first // max(1, blocks * rows) * rows + first % max(1, rows)] = True
    row = (~has).nonzero().squeeze(1)
    return row // max(1, rows) * (blocks * rows) + row % max(1, rows)
