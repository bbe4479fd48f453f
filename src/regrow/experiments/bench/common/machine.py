"""What a measurement ran on."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

import regrow
from regrow.ops.native import instruction_set

__all__ = ["Machine", "describe", "processor"]


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
