"""What a measurement ran on, in one line."""

from __future__ import annotations

import platform

import torch

import regrow
from regrow.experiments.bench.common.machine import processor


def describe() -> str:
    """Return processor, threads and versions in one line."""
    return (
        f"{processor()}, {torch.get_num_threads()} threads, regrow {regrow.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
