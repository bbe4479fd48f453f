"""Where the time of a training step goes, by kind of operation, as PyTorch's profiler sees it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import torch

__all__ = ["KINDS", "REST", "Event", "by_kind", "kind_of", "profile"]

KINDS: dict[str, str] = {
    "optimizer": r"^Optimizer\.",
    "normalisation": r"norm",
    "pooling": r"pool",
    "convolution and linear": r"conv|addmm|::mm$|linear|matmul|^mm|addmv|::bmm|_gradient_at|regrow::",
    "activation": r"dropout|relu|threshold|sigmoid|tanh|gelu|silu",
}
"""A pattern for the names of each kind's operations, forward and backward; the first that fits counts."""

REST = "rest"


class Event(Protocol):
    """What is read of an event of the profiler."""

    name: str
    self_cpu_time_total: float
    cpu_children: list[Event]


def kind_of(name: str) -> str | None:
    """Return the kind of an operation by its name; None for what only calls others, or is none of them.

    Example:
        >>> kind_of("aten::native_batch_norm_backward"), kind_of("aten::add_")
        ('normalisation', None)
    """
    found = (kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE))
    return next(found, None)


def by_kind(roots: Iterable[Event], wall: float) -> dict[str, float]:
    """Return the time of each kind of operation; the rest of the wall time, Python included, is `rest`.

    An operation counts for the kind of the outermost one that it is part of: a copy within a convolution is
    convolution.

    Args:
        roots: events that are part of no other.
        wall: wall time of all of them together, in the unit of the events.
    """
    times = dict.fromkeys(KINDS, 0.0)
    waiting: list[tuple[Event, str | None]] = [(event, None) for event in roots]
    while waiting:
        event, kind = waiting.pop()
        kind = kind or kind_of(event.name)
        if kind is not None:
            times[kind] += event.self_cpu_time_total
        waiting += [(child, kind) for child in event.cpu_children]
    return {**times, REST: wall - sum(times.values())}


def profile(step: Callable[[], object], steps: int) -> dict[str, float]:
    """Run some steps under the profiler and return the milliseconds a step of each kind.

    The profiler itself takes time, which shows in `rest`.

    Args:
        step: takes one training step.
        steps: how many.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities):
        step()  # what the profiler does at its first time is none of the step's
    with torch.profiler.profile(activities=activities) as profiler:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        wall = (time.perf_counter() - began) * 1e6
    roots = [event for event in profiler.events() or () if event.cpu_parent is None]
    return {kind: microseconds / 1e3 / steps for kind, microseconds in by_kind(roots, wall).items()}
