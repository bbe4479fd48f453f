"""The least time that a layer needs on a machine, by arithmetic or by memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median

import torch

from regrow.experiments.bench.layers.problem import PASSES, Problem
from regrow.experiments.bench.layers.rates import Rates

__all__ = ["Floor", "floors", "with_sums"]

_INDEX_BYTES = 6  # a unit's position and order, as the kernels read them


@dataclass(frozen=True)
class Floor:
    """The least that a pass needs on this machine, were it only arithmetic or only memory.

    Attributes:
        operations: two for each nonzero, sample and output position that is not padding's alone.
        bytes: activations and weights, each read or written once.
        milliseconds: what the slower of both takes at the machine's rates.
        bound: `arithmetic` or `memory`.
        share: that time over the measured one; it can pass 1 where data stay in the caches.
    """

    operations: float
    bytes: float
    milliseconds: float
    bound: str
    share: float


def with_sums(times: Mapping[str, float]) -> dict[str, float]:
    """Return the times of the passes of a round with `backward` (both gradients) and `total`.

    Example:
        >>> with_sums({"forward": 1.0, "input": 2.0, "weight": 3.0})["total"]
        6.0
    """
    sums = dict(times)
    if "backward" not in sums:
        sums["backward"] = sums["input"] + sums["weight"]
    sums["total"] = sums["forward"] + sums["backward"]
    return sums


def floors(problem: Problem, rates: Rates, times: Sequence[Mapping[str, float]]) -> dict[str, Floor]:
    """Return the floor of each pass and of the total.

    Args:
        problem: what is computed.
        rates: what the machine can do.
        times: for each round the milliseconds of the sparse kernels' passes.
    """
    shape = problem.shape
    operations = 2.0 * shape.batch * _products(problem)
    x = 4.0 * shape.batch * shape.inputs * shape.plane**2
    y = 4.0 * shape.batch * shape.outputs * shape.output_plane**2
    weights = (4.0 + _INDEX_BYTES / prod(problem.pattern.unit)) * problem.pattern.nonzeros
    taken = {name: median(with_sums(each)[name] for each in times) for name in (*PASSES, "total")}
    found = {}
    for name in PASSES:
        arithmetic, memory = operations / rates.operations * 1e3, (x + y + weights) / rates.bytes * 1e3
        least = max(arithmetic, memory)
        bound = "arithmetic" if arithmetic > memory else "memory"
        found[name] = Floor(operations, x + y + weights, least, bound, least / taken[name])
    least = sum(floor.milliseconds for floor in found.values())
    found["total"] = Floor(3 * operations, 3 * (x + y + weights), least, found["forward"].bound, least / taken["total"])
    return found


def _products(problem: Problem) -> int:
    """Return for one sample how many products of a nonzero and an input that is no padding there are."""
    shape = problem.shape
    if shape.kernel is None:
        return problem.pattern.nonzeros
    starts = torch.arange(shape.output_plane) * shape.stride - shape.padding
    inside = torch.stack([((starts + tap >= 0) & (starts + tap < shape.plane)).sum() for tap in range(shape.kernel)])
    of_tap = (inside[:, None] * inside).reshape(-1)
    return int(of_tap[problem.pattern.positions % len(of_tap)].sum())
