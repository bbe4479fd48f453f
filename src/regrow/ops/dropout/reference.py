"""The meaning of dropout by a seed, in plain PyTorch: the same elements as the kernels drop."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["dropout", "kept", "words_kept"]

_WORD = (1 << 32) - 1
_WORD64 = (1 << 64) - 1


def dropout(x: Tensor, rate: float, seed: int | None, inplace: bool = False) -> Tensor:
    """Drop by PyTorch's own operations; arguments as for `regrow.ops.dropout`."""
    if seed is None:
        return F.dropout(x, rate, inplace=inplace)
    output = torch.where(kept(x.shape, rate, seed, x.device), x * (1.0 / (1.0 - rate)), 0.0)
    return x.copy_(output) if inplace else output


def kept(shape: torch.Size, rate: float, seed: int, device: torch.device | None = None) -> Tensor:
    """Return which elements of a tensor (N, C, H, W) are kept, bool; the elements of a channel count batch-last."""
    count, channels, *plane = shape
    keys = [_mixed(_mixed(seed) + 0x9E3779B97F4A7C15 * (channel + 1)) for channel in range(channels)]
    first, second = (
        torch.tensor([key >> shift & _WORD for key in keys], dtype=torch.int64, device=device).view(-1, 1)
        for shift in (0, 32)
    )
    at = torch.arange(count * plane[0] * plane[1], dtype=torch.int64, device=device)
    word = at ^ first
    word = _times(word ^ (word >> 16), 0x85EBCA6B)
    word = _times(word ^ (word >> 15), 0xC2B2AE35)
    word = (word ^ (word >> 16)) + second & _WORD
    word = _times(word ^ (word >> 15), 0x9E3779B1)
    # As signed integers, lowest first.
    order = (word + (1 << 31)) & _WORD
    return (order < words_kept(rate)).view(channels, *plane, count).movedim(-1, 0)


def words_kept(rate: float) -> int:
    """Return how many of 2**32 equally likely words keep their element; at least one."""
    return max(1, min(1 << 32, int((1.0 - rate) * (1 << 32) + 0.5)))


def _times(word: Tensor, factor: int) -> Tensor:
    """Return the lower 32 bits of a product."""
    return word * factor & _WORD


def _mixed(word: int) -> int:
    word &= _WORD64
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _WORD64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _WORD64
    return word ^ (word >> 31)
