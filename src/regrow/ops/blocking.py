"""How a weight's nonzeros are grouped for the kernels: the size of a block of channels, and which driver walks them.

The *blocked* driver packs a block of channels into the first-level cache, and sums wait in a buffer between blocks:
right for many channels and high densities. The *sweep* keeps as many channels as the second-level cache holds, sums
stay in registers, and every read and write is a long run: right for few channels, low densities and 1x1 kernels.
`docs/kernels.md` tells where the figures here come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import NamedTuple

__all__ = ["Blocking", "choose_blocking", "unit_blocking"]

# What one block may take of a first-level cache of 48 KiB and a second-level cache of 1 MiB, beside sums and outputs.
_FIRST_LEVEL_BYTES = 36 * 1024
_SECOND_LEVEL_BYTES = 800 * 1024
# An offset within a block is stored in 16 bits.
_OFFSETS = 1 << 15
# A vector of 16 floats, the lanes of a tile of the sweep, and the vectors of a tile.
_LINE_BYTES = 64
_SWEEP_VECTORS = 8
_TILE_VECTORS = 16
_LINEAR_VECTORS = 4
# Units compute strips of two rows one after the other, and share the second-level cache with their values.
_STRIP_ROWS, _UNIT_BYTES = 2, 600 * 1024
# Nanoseconds on one core (AMD Zen 5): for a nonzero of a tile (and in a block of twice the size), for a segment (with
# sums that fit the second-level cache, and with more), for a packed line that no earlier tile read, for one that some
# did, for a line of outputs, and for a line of sums that is read and written once more.
_BLOCKED_NONZERO, _BLOCKED_FAR_NONZERO = 2.6, 3.2
_BLOCKED_SEGMENT, _BLOCKED_FAR_SEGMENT, _BLOCKED_OUTPUT = 8.5, 20.0, 5.0
_BLOCKED_NEW, _BLOCKED_KNOWN = 7.0, 1.7
_SWEEP_NONZERO, _SWEEP_SEGMENT, _SWEEP_LINE, _SWEEP_OUTPUT, _SWEEP_SUM = 5.7, 8.0, 1.5, 2.5, 3.0
_NEAR_ROWS = 640


class Blocking(NamedTuple):
    """How many input channels share a block, whether the sweep walks over them, and how many outputs an entry has."""

    channels_per_block: int
    sweep: bool
    unit: int = 1


def choose_blocking(
    rows: int, channels: int, nonzeros: float, kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int],
    transposed: bool = False, linear: bool = False,
) -> Blocking:  # fmt: skip
    """Return the grouping that should be fastest, by a model of the time for one tile of outputs.

    Args:
        rows: output channels of the direction at hand.
        channels: input channels of it.
        nonzeros: of the weight.
        kernel: height and width.
        dilation: distance between taps, height and width.
        stride: of the convolution, height and width.
        transposed: whether this is the direction of the input's gradient.
        linear: whether the plane has one position.

    Example:
        >>> choose_blocking(512, 512, 0.05 * 512 * 512 * 9, (3, 3), (1, 1), (1, 1))
        Blocking(channels_per_block=16, sweep=False, unit=1)
        >>> choose_blocking(64, 64, 0.05 * 64 * 64 * 9, (3, 3), (1, 1), (1, 1))
        Blocking(channels_per_block=64, sweep=True, unit=1)
    """
    offsets = _OFFSETS // prod(kernel)
    if linear:
        # Lines of a few lanes: as many blocks as the second-level cache makes needed, of one size.
        blocks = ceil(channels / min(_SECOND_LEVEL_BYTES // (_LINEAR_VECTORS * _LINE_BYTES), offsets))
        return Blocking(max(1, ceil(channels / max(1, blocks))), True)
    reach = [(taps - 1) * step + 1 for taps, step in zip(kernel, dilation, strict=True)]
    if transposed:
        # Each output belongs to one phase, and has that phase's share of the nonzeros.
        reach = [ceil((span - 1) / step) + 1 for span, step in zip(reach, stride, strict=True)]
        nonzeros /= prod(stride)
        advance = [1, 1]
    else:
        advance = list(stride)

    # A tile of 4 x 4 outputs; inputs that no tap reads are not packed, yet lie between those that are.
    new = _TILE_VECTORS * prod(advance)
    lines = min(prod(3 * step + span for step, span in zip(advance, reach, strict=True)), _TILE_VECTORS * prod(kernel))
    fits = max(1, min(_FIRST_LEVEL_BYTES // (lines * _LINE_BYTES), offsets, channels))
    segment_time = _BLOCKED_SEGMENT if rows <= _NEAR_ROWS else _BLOCKED_FAR_SEGMENT
    # Where rows have few nonzeros in a block, blocks twice as large have half as many segments.
    sum_time, blocked = min(
        (nonzeros * time + min(nonzeros, rows * ceil(channels / size)) * segment_time, size)
        for size, time in ((fits, _BLOCKED_NONZERO), (min(2 * fits, offsets, channels), _BLOCKED_FAR_NONZERO))
    )
    blocked_time = (
        sum_time + channels * (new * _BLOCKED_NEW + max(0, lines - new) * _BLOCKED_KNOWN)
        + rows * _TILE_VECTORS * _BLOCKED_OUTPUT
    )  # fmt: skip

    height = _TILE_VECTORS // _SWEEP_VECTORS
    tall = (height - 1) * advance[0] + reach[0]
    most = _SECOND_LEVEL_BYTES // (tall * reach[1] * _SWEEP_VECTORS * _LINE_BYTES)
    blocks = ceil(channels / max(1, min(most, offsets)))
    sweep = ceil(channels / max(1, blocks))
    sweep_time = (
        nonzeros * _SWEEP_NONZERO + rows * blocks * _SWEEP_SEGMENT
        + channels * tall * advance[1] * _SWEEP_VECTORS * _SWEEP_LINE
        + rows * _TILE_VECTORS * (_SWEEP_OUTPUT + (blocks - 1) * _SWEEP_SUM)
    )  # fmt: skip
    return Blocking(sweep, True) if most and sweep_time < blocked_time else Blocking(blocked, False)


def unit_blocking(
    channels: int,
    kernel: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    unit: int,
    linear: bool = False,
) -> Blocking:
    """Return the grouping of units of several outputs: as many channels as the second-level cache holds.

    Args:
        channels: input channels.
        kernel: height and width.
        dilation: distance between taps, height and width.
        stride: of the convolution, height and width.
        unit: outputs of a unit.
        linear: whether the plane has one position.

    Example:
        >>> unit_blocking(512, (3, 3), (1, 1), (1, 1), unit=4)
        Blocking(channels_per_block=171, sweep=True, unit=4)
    """
    reach = [(taps - 1) * step + 1 for taps, step in zip(kernel, dilation, strict=True)]
    lines = 1 if linear else ((_STRIP_ROWS - 1) * stride[0] + reach[0]) * reach[1]
    most = _UNIT_BYTES // (lines * _TILE_VECTORS // unit * _LINE_BYTES)
    blocks = ceil(channels / max(1, min(most, _OFFSETS // prod(kernel))))
    return Blocking(max(1, ceil(channels / max(1, blocks))), True, unit)
