"""Sets of positions in few bits.

Of each position its distance to the one before is written, as a Rice code: the lowest bits as they are, the rest as so
many zeros before a one (Rice & Plaunt 1971, doi:10.1109/TCOM.1971.1090789). With no lowest bits that is a bitmap. At
random positions it takes about one hundredth more than the entropy: 5.8 bits a weight at a density of 5 %.

Whatever bytes are read, the numbers come out sorted, distinct and not negative; only their end must be checked.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["pack", "unpack"]

# Far from where sums of 64 bits overflow.
_LARGEST = 1 << 62


def pack(numbers: Tensor) -> tuple[int, Tensor]:
    """Return sorted distinct numbers in few bits.

    Args:
        numbers: int64 on the CPU, none negative.

    Returns:
        How many of the lowest bits of a distance are written as they are, and the bytes, uint8.

    Example:
        >>> pack(torch.tensor([1, 2, 5]))  # 0110 01 and two to fill the byte
        (0, tensor([100], dtype=torch.uint8))
    """
    gaps = np.diff(numbers.numpy(), prepend=-1) - 1
    bits = _lowest_bits(gaps)
    ends = np.cumsum((gaps >> bits) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, dtype=np.uint8)
    unary[ends] = 1
    planes = [np.packbits((gaps >> bit & 1).astype(np.uint8)) for bit in range(bits)]
    return bits, torch.from_numpy(np.concatenate([np.packbits(unary), *planes]))


def unpack(packed: Tensor, bits: int, count: int, below: int) -> Tensor:
    """Return the numbers that `pack` made bytes of, int64.

    Args:
        packed: the bytes, uint8 of one dimension.
        bits: the lowest bits of a distance.
        count: how many numbers there are.
        below: all are smaller.

    Raises:
        ValueError: if the bytes are no such numbers.

    Example:
        >>> unpack(torch.tensor([100], dtype=torch.uint8), bits=0, count=3, below=6)
        tensor([1, 2, 5])
    """
    if packed.dtype != torch.uint8 or packed.dim() != 1:
        raise ValueError("packed positions are bytes of one dimension")
    if not (0 <= bits <= below.bit_length() and 0 <= count <= below and max(below, count << bits) < _LARGEST):
        raise ValueError(f"{count} positions of {bits} lowest bits do not fit {below} places")
    data, plane = packed.numpy(), -(-count // 8)
    ends_at = len(data) - bits * plane
    ends = np.flatnonzero(np.unpackbits(data[: max(ends_at, 0)]))
    if len(ends) != count or ends_at != (-(-(int(ends[-1]) + 1) // 8) if count else 0):
        raise ValueError(f"the bytes do not hold {count} positions")
    gaps = np.diff(ends, prepend=-1) - 1
    if int(gaps.sum()) << bits >= max(below, 1):
        raise ValueError(f"positions go beyond {below} places")
    gaps <<= bits
    for bit in range(bits):
        start = ends_at + bit * plane
        gaps |= np.unpackbits(data[start : start + plane], count=count).astype(np.int64) << bit
    numbers = np.cumsum(gaps + 1) - 1
    if count and int(numbers[-1]) >= below:
        raise ValueError(f"positions go beyond {below} places")
    return torch.from_numpy(numbers)


def _lowest_bits(gaps: NDArray[np.int64]) -> int:
    """Return how many bits of each distance to write as they are, so that all take the least room."""
    bits, size = 0, int(gaps.sum())
    while size:
        more = (bits + 1) * len(gaps) + int((gaps >> (bits + 1)).sum())
        if more >= size:
            break
        bits, size = bits + 1, more
    return bits
