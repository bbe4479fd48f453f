"""How fast a machine is at its best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
import torch.nn.functional as F

__all__ = ["Rates", "measure_rates"]

_COPY_BYTES = 1 << 28
_REPEATS = 5


@dataclass(frozen=True)
class Rates:
    """The most that a machine was seen to reach.

    Attributes:
        operations: operations a second, a multiply-add counting two: the faster of a large dense matrix product and a
            large dense convolution.
        bytes: bytes a second from and to memory, in a copy far larger than the caches.
    """

    operations: float
    bytes: float

    def __str__(self) -> str:
        """Return them in one line."""
        return f"{self.operations / 1e9:.0f} GFLOP/s, {self.bytes / 1e9:.1f} GB/s"


def measure_rates(clock: Callable[[], float] = perf_counter) -> Rates:
    """Measure the machine (seconds long), with as many threads as PyTorch uses now.

    Args:
        clock: returns seconds.
    """

    def best(run: Callable[[], object]) -> float:
        run()
        times = []
        for _ in range(_REPEATS):
            start = clock()
            run()
            times.append(clock() - start)
        return min(times)

    size = 1536
    matrix = torch.randn(size, size)
    product = 2.0 * size**3 / best(lambda: matrix @ matrix)
    plane = torch.randn(32, 256, 16, 16).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(256, 256, 3, 3).contiguous(memory_format=torch.channels_last)
    convolution = 2.0 * plane.numel() * 256 * 9 / best(lambda: F.conv2d(plane, kernel, padding=1))
    source = torch.zeros(_COPY_BYTES // 4)
    target = torch.zeros(_COPY_BYTES // 4)
    copy = 2.0 * _COPY_BYTES / best(lambda: target.copy_(source))
    return Rates(max(product, convolution), copy)
