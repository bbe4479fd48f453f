"""What a measurement ran on, and how fast that machine is at its best."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F

import regrow
from regrow.ops.native import instruction_set

_COPY_BYTES = 1 << 28
_REPEATS = 5


@dataclass(frozen=True)
class Machine:
    """Processor, threads and versions.

    Attributes:
        processor: its name.
        threads: threads of PyTorch and of the kernels.
        instruction_set: which kernels are in use.
        versions: of Python and of the packages that are measured.
    """

    processor: str
    threads: int
    instruction_set: str
    versions: dict[str, str]

    def __str__(self) -> str:
        """Return it in one line."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.processor}, {threads}, {self.instruction_set} kernels, {versions}"


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


def describe(packages: tuple[str, ...] = ()) -> Machine:
    """Return what this process runs on.

    Args:
        packages: further packages to give the versions of.
    """
    versions = {"regrow": regrow.__version__, "torch": torch.__version__, "Python": platform.python_version()}
    versions.update({name: importlib.metadata.version(name) for name in packages})
    return Machine(processor(), torch.get_num_threads(), instruction_set(), versions)


def processor() -> str:
    """Return the name of the processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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
