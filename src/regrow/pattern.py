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

from regrow.blocking import choose_blocking
from regrow.native import kernels

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
            self._cache[key] = self._group(geometry, transposed=False)
        return self._cache[key]

    def transposed_blocks(self, geometry: Geometry) -> Blocks:
        """Return the grouping by input channel, which the input's gradient uses."""
        key = ("transposed", geometry)
        if key not in self._cache:
            self._cache[key] = self._group(geometry, transposed=True)
        return self._cache[key]

    def spread(self, geometry: Geometry, plane: tuple[int, int]) -> SpreadPattern:
        """Return the convolution on an input of this height and width as a linear layer."""
        key = (geometry, plane)
        if key not in self._spread:
            self._spread[key] = SpreadPattern(self, geometry, plane)
        return self._spread[key]

    def _group(self, geometry: Geometry, *, transposed: bool) -> Blocks:
        """Group the nonzeros by phase, block of channels and row."""
        inputs = self.shape[1] * geometry.groups
        rows, channels = (inputs, self.shape[0]) if transposed else (self.shape[0], inputs)
        blocking = choose_blocking(
            rows, channels, self.nonzeros, self.kernel, geometry.dilation, geometry.stride, transposed,
            linear=len(self.shape) == 2,
        )  # fmt: skip
        phase = self._phase(geometry) if transposed and geometry.stride != (1, 1) else None
        positions = self.positions.contiguous()
        made = kernels().group(
            positions=positions.data_ptr(), wide=positions.dtype == torch.int64, nonzeros=self.nonzeros,
            outputs=self.shape[0], channels=self.shape[1], taps=prod(self.kernel), groups=geometry.groups,
            transposed=transposed, channels_per_block=blocking.channels_per_block,
            phase=0 if phase is None else phase.data_ptr(), phases=1 if phase is None else prod(geometry.stride),
        )  # fmt: skip
        order, place, segment_row, segment_start, block_start = made
        choice = torch.tensor(blocking, dtype=torch.int32)
        return Blocks(order, place, segment_row, segment_start, block_start, choice)

    def _phase(self, geometry: Geometry) -> Tensor:
        """Return which inputs, modulo the stride, each tap's outputs read, int32: inputs of one phase share taps."""
        height, width = (
            (torch.arange(taps, dtype=torch.int32) * dilation - padding) % stride
            for taps, dilation, padding, stride in zip(
                self.kernel, geometry.dilation, geometry.padding, geometry.stride, strict=True
            )
        )
        return (height[:, None] * geometry.stride[1] + width).reshape(-1)


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
            source, positions = self._connections()
            linear = Pattern(self.shape, positions)
            blocks = linear.transposed_blocks(Geometry()) if transposed else linear.forward_blocks(Geometry())
            self._cache[transposed] = blocks._replace(order=source[blocks.order])
        return self._cache[transposed]

    def _connections(self) -> tuple[Tensor, Tensor]:
        """Return which value each weight of the linear layer has, int32, and where it stands, sorted int64."""
        taps = prod(self.pattern.kernel)
        positions = self.pattern.positions.long()
        tap, channel = positions % taps, positions // taps % self.pattern.shape[1]
        row = positions // (taps * self.pattern.shape[1])
        channel += row // (self.pattern.shape[0] // self.geometry.groups) * self.pattern.shape[1]
        outputs, inputs = prod(self.output_plane), prod(self.plane)
        source, where = [], []
        for output, reads in enumerate(self._reads()):
            place = reads[tap]
            here = (place >= 0).nonzero().squeeze(1)
            source.append(here.int())
            where.append((row[here] * outputs + output) * self.shape[1] + channel[here] * inputs + place[here])
        positions, order = torch.cat(where).sort()
        return torch.cat(source)[order], positions

    def _reads(self) -> Tensor:
        """Return which input position each output position reads for each tap, or -1: int64, (positions, taps)."""
        height, width = (
            torch.arange(outputs)[:, None] * stride - padding + torch.arange(taps) * dilation
            for outputs, taps, stride, padding, dilation in zip(
                self.output_plane, self.pattern.kernel, *self.geometry[:3], strict=True
            )
        )
        row, column = height[:, None, :, None], width[None, :, None, :]
        inside = (row >= 0) & (row < self.plane[0]) & (column >= 0) & (column < self.plane[1])
        place = torch.where(inside, row * self.plane[1] + column, -1)
        return place.reshape(prod(self.output_plane), prod(self.pattern.kernel))
