"""What a measurement ran on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

import regrow


def describe() -> str:
    """Return processor, threads and versions in one line."""
    return (
        f"{processor()}, {torch.get_num_threads()} threads, regrow {regrow.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def processor() -> str:
    """Return the name of the processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
