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
    _spread: dict[object, SpreadPattern] = field(default_factory=dict, init=False, repr=False)

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
        blocks = [*self._cache.values(), *(blocks for spread in self._spread.values() for blocks in spread.made())]
        return self.positions.nbytes + sum(tensor.nbytes for each in blocks for tensor in each)

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
            row, channel, tap = self.coordinates(geometry.groups)
            channels = self.shape[1] * geometry.groups
            self._cache[key] = self._group(row, channel, tap, None, self.shape[0], channels, geometry, transposed=False)
        return self._cache[key]

    def transposed_blocks(self, geometry: Geometry) -> Blocks:
        """Return the grouping by input channel, which the input's gradient uses."""
        key = ("transposed", geometry)
        if key not in self._cache:
            row, channel, tap = self.coordinates(geometry.groups)
            phase = self._phase(tap, geometry) if geometry.stride != (1, 1) else None
            channels = self.shape[1] * geometry.groups
            self._cache[key] = self._group(channel, row, tap, phase, channels, self.shape[0], geometry, transposed=True)
        return self._cache[key]

    def spread(self, geometry: Geometry, plane: tuple[int, int]) -> SpreadPattern:
        """Return the convolution on an input of this height and width as a linear layer."""
        key = (geometry, plane)
        if key not in self._spread:
            self._spread[key] = SpreadPattern(self, geometry, plane)
        return self._spread[key]

    def _group(
        self, row: Tensor, channel: Tensor, tap: Tensor, phase: Tensor | None, rows: int, channels: int,
        geometry: Geometry, transposed: bool,
    ) -> Blocks:  # fmt: skip
        """Group the nonzeros, whose coordinates are changed, by phase, block of channels and row."""
        blocking = choose_blocking(
            rows, channels, self.nonzeros, self.kernel, geometry.dilation, geometry.stride, transposed,
            linear=len(self.shape) == 2,
        )  # fmt: skip
        phases = 1 if phase is None else prod(geometry.stride)
        return _group(row, channel, tap, prod(self.kernel), phase, rows, channels, phases, blocking)

    def coordinates(self, groups: int) -> tuple[Tensor, Tensor, Tensor]:
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


@dataclass(frozen=True, eq=False)
class SpreadPattern:
    """A convolution on a plane of few positions as a linear layer, with values that several of its weights share.

    A nonzero stands once for each output position that it reaches, between input and output positions that count as
    features. Where padding is most of what a kernel sees, as on planes of 2 x 2, that is less work.

    Args:
        pattern: of the convolution.
        geometry: its stride, padding, dilation and groups.
        plane: height and width of its input.
    """

    pattern: Pattern
    geometry: Geometry
    plane: tuple[int, int]
    _cache: dict[bool, Blocks] = field(default_factory=dict, init=False, repr=False)

    @property
    def output_plane(self) -> tuple[int, int]:
        """Height and width of the output."""
        height, width = (
            (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
            for size, taps, stride, padding, dilation in zip(
                self.plane, self.pattern.kernel, *self.geometry[:3], strict=True
            )
        )
        return height, width

    @property
    def shape(self) -> tuple[int, int]:
        """Features of the output and of the input."""
        outputs, channels = self.pattern.shape[:2]
        return outputs * prod(self.output_plane), channels * self.geometry.groups * prod(self.plane)

    @property
    def kernel(self) -> tuple[int, int]:
        """One tap, as that of a linear layer."""
        return (1, 1)

    def forward_blocks(self, _: Geometry) -> Blocks:
        """Return the grouping by output feature."""
        return self._blocks(transposed=False)

    def transposed_blocks(self, _: Geometry) -> Blocks:
        """Return the grouping by input feature."""
        return self._blocks(transposed=True)

    def made(self) -> list[Blocks]:
        """Return the groupings made so far."""
        return list(self._cache.values())

    def _blocks(self, *, transposed: bool) -> Blocks:
        if transposed not in self._cache:
            source, row, channel = self._connections()
            rows, channels = self.shape
            if transposed:
                row, channel, rows, channels = channel, row, channels, rows
            blocking = choose_blocking(rows, channels, len(source), (1, 1), (1, 1), (1, 1), linear=True)
            blocks = _group(row, channel, torch.zeros_like(row), 1, None, rows, channels, 1, blocking)
            self._cache[transposed] = blocks._replace(order=source[blocks.order])
        return self._cache[transposed]

    def _connections(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return for each weight of the linear layer its value, output and input feature, int32 each."""
        row, channel, tap = self.pattern.coordinates(self.geometry.groups)
        outputs, inputs = prod(self.output_plane), prod(self.plane)
        source, output, seen = [], [], []
        for position, reads in enumerate(self._reads()):
            place = reads[tap]
            here = (place >= 0).nonzero().squeeze(1)
            source.append(here.int())
            output.append(row[here] * outputs + position)
            seen.append(channel[here] * inputs + place[here])
        return torch.cat(source), torch.cat(output), torch.cat(seen)

    def _reads(self) -> Tensor:
        """Return which input position each output position reads for each tap, or -1: int32, (positions, taps)."""
        height, width = (
            torch.arange(outputs)[:, None] * stride - padding + torch.arange(taps) * dilation
            for outputs, taps, stride, padding, dilation in zip(
                self.output_plane, self.pattern.kernel, *self.geometry[:3], strict=True
            )
        )
        row, column = height[:, None, :, None], width[None, :, None, :]
        inside = (row >= 0) & (row < self.plane[0]) & (column >= 0) & (column < self.plane[1])
        place = torch.where(inside, row * self.plane[1] + column, -1)
        return place.reshape(prod(self.output_plane), prod(self.pattern.kernel)).int()


def _group(
    row: Tensor, channel: Tensor, tap: Tensor, taps: int, phase: Tensor | None, rows: int, channels: int, phases: int,
    blocking: Blocking,
) -> Blocks:  # fmt: skip
    """Group nonzeros, whose coordinates are changed, by phase, block of channels and row."""
    per_block = blocking.channels_per_block
    blocks = -(-channels // per_block)
    place = tap.add_(channel % per_block, alpha=taps).short()
    # Sorting is most of the work, and takes half as long where 32 bits are enough.
    fits = phases * blocks * rows <= torch.iinfo(torch.int32).max
    key = (channel if fits else channel.long()).floor_divide_(per_block).mul_(rows).add_(row)
    if phase is not None:
        key.add_(phase, alpha=blocks * rows)
    return _sorted_blocks(key, place, rows, phases, blocks, blocking)


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
