"""When and how much: rates, densities and ends of updates."""

from __future__ import annotations

import math
from collections.abc import Callable


def cosine(start: float, end: float, step: int, steps: int) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


# The prune rate of each method at a step of a training of `steps` steps.
RATES: dict[str, Callable[[int, int], float]] = {
    "static": lambda step, steps: 0.0,
    "set": lambda step, steps: 0.3,
    "rigl": lambda step, steps: cosine(0.3, 0.0, step, round(0.75 * steps)),
    "sparse-momentum": lambda step, steps: cosine(0.5, 0.005, step, steps),
    "dsr": lambda step, steps: 0.15,
    "gmp": lambda step, steps: 0.0,
    "granet": lambda step, steps: cosine(0.5, 0.005, step, steps),
    "itop": lambda step, steps: cosine(0.5, 0.005, step, steps),
    "mest": lambda step, steps: 0.2 if step < 9 * steps / 16 else 0.1,
    "acdc": lambda step, steps: 0.0,
    "srigl": lambda step, steps: cosine(0.3, 0.0, step, round(0.75 * steps)),
    "chts": lambda step, steps: 0.3,
    "gse": lambda step, steps: cosine(0.2, 0.0, step, steps),
}


def cubic(start: float, end: float, step: int, first: int, last: int) -> float:
    """Return the density of Zhu & Gupta at a step: one minus `s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3`."""
    initial, final = 1 - start, 1 - end
    progress = min(max((step - first) / (last - first), 0.0), 1.0)
    return 1 - (final + (initial - final) * (1 - progress) ** 3)


def alternating(step: int, steps: int, phase: int) -> float:
    """Return the density of AC/DC at a step: sparse and dense in turn from a tenth of the training to 0.85 of it."""
    begin, last = math.ceil(steps / 10 / phase) * phase, math.floor(0.85 * steps / phase) * phase
    if step >= last:
        return 0.1
    number = (step - begin) // phase
    ends_before_the_last = begin + (number + 1) * phase < last
    return 0.1 if step >= begin and number % 2 == 0 and ends_before_the_last else 1.0


# The density of each method that changes it, with its usual settings and an update every `every` steps.
DENSITIES: dict[str, Callable[[int, int, int], float]] = {
    "gmp": lambda step, steps, every: cubic(
        1.0, 0.1, step, steps // 4 // every * every, 3 * steps // 4 // every * every
    ),
    "granet": lambda step, steps, every: cubic(0.5, 0.1, step, 0, 69 * steps // 100 // every * every),
    "acdc": alternating,
}
# The part of the training after which there are no more updates.
UNTIL = {"rigl": 0.75, "dsr": 0.95, "mest": 0.75, "srigl": 0.75}
