"""The index structure of a sparse weight, and how its nonzeros are grouped."""

from __future__ import annotations

import math

import pytest
import torch

from regrow.ops.blocking import choose_blocking
from regrow.ops.pattern import Geometry, Pattern


def test_pattern_refuses_bad_positions() -> None:
    for positions in ([1, 0], [2, 2], [-1], [12]):
        with pytest.raises(ValueError, match="sorted, distinct"):
            Pattern((3, 4), torch.tensor(positions))
    with pytest.raises(ValueError, match="dimensions"):
        Pattern((3,), torch.tensor([0]))


def test_a_mask_gives_the_pattern_of_its_true_positions() -> None:
    mask = torch.rand(7, 11, generator=torch.Generator().manual_seed(0)) < 0.3
    pattern = Pattern.of_mask(mask)
    assert pattern.shape == mask.shape
    assert torch.equal(pattern.positions.long(), mask.flatten().nonzero().squeeze(1))
    assert pattern.density == pattern.nonzeros / mask.numel()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 9), (11, 11), (128, 128)])
@pytest.mark.parametrize("channels", [1, 3, 64, 4096])
def test_an_offset_fits_its_16_bits(channels: int, kernel: tuple[int, int], transposed: bool) -> None:
    for density in (0.0, 0.001, 0.05, 1.0):
        nonzeros = density * 64 * channels * math.prod(kernel)
        blocking = choose_blocking(64, channels, nonzeros, kernel, (2, 1), (1, 2), transposed)
        assert 1 <= blocking.channels_per_block <= channels
        assert blocking.channels_per_block == 1 or blocking.channels_per_block * math.prod(kernel) <= 1 << 15


def grouped(pattern: Pattern, geometry: Geometry, per_block: int, *, transposed: bool) -> list[list[int]]:
    """Return order, offset, segment_row, segment_start and block_start from their definitions, one weight at a time."""
    outputs, channels, *kernel = (*pattern.shape, 1, 1)[:4]
    inputs, taps = channels * geometry.groups, math.prod(kernel)
    strides = geometry.stride if transposed else (1, 1)
    blocks = -(-(outputs if transposed else inputs) // per_block)
    rows = range(inputs if transposed else outputs)
    segments: dict[tuple[int, int], dict[int, list[tuple[int, int]]]] = {
        (phase, block): {row: [] for row in rows} for phase in range(math.prod(strides)) for block in range(blocks)
    }
    for entry, position in enumerate(pattern.positions.tolist()):
        output, rest = divmod(position, channels * taps)
        channel, tap = divmod(rest, taps)
        channel += output // (outputs // geometry.groups) * channels
        row, column = (channel, output) if transposed else (output, channel)
        of_axis = [
            (at * dilation - padding) % stride
            for at, dilation, padding, stride in zip(
                divmod(tap, kernel[1]), geometry.dilation, geometry.padding, strides, strict=True
            )
        ]
        phase = of_axis[0] * strides[1] + of_axis[1]
        segments[phase, column // per_block][row].append((entry, column % per_block * taps + tap))
    order, offset, segment_row, segment_start, block_start = [], [], [], [0], [0]
    for (_, block), of_row in segments.items():
        for row, entries in sorted(of_row.items(), key=lambda item: (-len(item[1]), item[0])):
            if entries or block == 0:
                segment_row.append(row)
                segment_start.append(segment_start[-1] + len(entries))
                order += [entry for entry, _ in entries]
                offset += [where for _, where in entries]
        block_start.append(len(segment_row))
    return [order, offset, segment_row, segment_start, block_start]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("density", [0, 0.1, 1])
@pytest.mark.parametrize(
    ("shape", "geometry"),
    [
        ((3, 7), Geometry()),
        ((300, 500), Geometry()),
        ((4, 3, 3, 2), Geometry((2, 2), (1, 0), (1, 1), 2)),
        ((6, 1, 3, 3), Geometry((1, 2), (1, 1), (2, 1), 6)),
        ((40, 90, 3, 3), Geometry((2, 1), (1, 1))),
        ((5, 3, 11, 11), Geometry((4, 4), (2, 2))),
    ],
    ids=str,
)
def test_nonzeros_are_grouped_as_defined(shape, geometry, density, wide) -> None:
    numel = math.prod(shape)
    order = torch.randperm(numel, generator=torch.Generator().manual_seed(0))
    positions = order[: round(density * numel)].sort().values.to(torch.int64 if wide else torch.int32)
    pattern = Pattern(shape, positions)
    for blocks, transposed in ((pattern.forward_blocks(geometry), False), (pattern.transposed_blocks(geometry), True)):
        per_block = int(blocks.blocking[0])
        assert [tensor.tolist() for tensor in blocks[:5]] == grouped(
            pattern, geometry, per_block, transposed=transposed
        )
        assert [tensor.dtype for tensor in blocks] == [torch.int32, torch.int16, *[torch.int32] * 4]
