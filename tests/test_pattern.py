"""The index structure of a sparse weight, and how its nonzeros are grouped."""

from __future__ import annotations

import math

import pytest
import torch

from regrow.blocking import choose_blocking
from regrow.pattern import Pattern


def test_pattern_refuses_bad_positions() -> None:
    for positions in ([1, 0], [2, 2], [-1], [12]):
        with pytest.raises(ValueError, match="sorted, distinct"):
            Pattern((3, 4), torch.tensor(positions))
    with pytest.raises(ValueError, match="dimensions"):
        Pattern((3,), torch.tensor([0]))


def test_pattern_rows_and_columns() -> None:
    mask = torch.rand(7, 11, generator=torch.Generator().manual_seed(0)) < 0.3
    csr = mask.float().to_sparse_csr()
    pattern = Pattern.of_mask(mask)
    assert torch.equal(pattern.row_pointers, csr.crow_indices())
    assert torch.equal(pattern.columns.long(), csr.col_indices())
    assert pattern.density == pattern.nonzeros / mask.numel()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 9), (11, 11), (128, 128)])
@pytest.mark.parametrize("channels", [1, 3, 64, 4096])
def test_a_place_fits_its_16_bits(channels: int, kernel: tuple[int, int], transposed: bool) -> None:
    for density in (0.0, 0.001, 0.05, 1.0):
        nonzeros = density * 64 * channels * math.prod(kernel)
        blocking = choose_blocking(64, channels, nonzeros, kernel, (2, 1), (1, 2), transposed)
        assert 1 <= blocking.channels_per_block <= channels
        assert blocking.channels_per_block == 1 or blocking.channels_per_block * math.prod(kernel) <= 1 << 15
