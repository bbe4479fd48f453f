"""Seeds of dropout."""

from __future__ import annotations

import torch

__all__ = ["draw_seed"]


def draw_seed() -> int:
    """Return a seed for `dropout` from PyTorch's default generator, which `torch.manual_seed` sets."""
    return int(torch.empty((), dtype=torch.int64).random_(-(1 << 63), None)) & ((1 << 64) - 1)
