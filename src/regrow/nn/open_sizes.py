"""Sizes that change at updates, left open for `torch.compile`: or it would compile anew for every update."""

from __future__ import annotations

import torch

__all__ = ["leave_sizes_open"]

# What Dynamo calls the values of a sparse layer, its index structure, and that of what it covers.
_SOURCES = (
    r".*\._parameters\['values'\]",
    r".*\._pattern\..*",
    r".*\.covered\..*",
)


def leave_sizes_open() -> None:
    """Name the tensors of sparse layers among those whose sizes `torch.compile` leaves open.

    PyTorch takes the sizes of parameters, and of what modules hold, for fixed, and a mark on the tensor does not change
    that. Its setting for exceptions, `torch.compiler.config.dynamic_sources`, takes names; what stands there stays.
    """
    config = getattr(torch.compiler, "config", None)
    known = getattr(config, "dynamic_sources", None)
    if config is None or known is None:  # PyTorch before 2.8
        return
    missing = [source for source in _SOURCES if source not in known]
    if missing:
        config.dynamic_sources = ",".join(([known] if known else []) + missing)
