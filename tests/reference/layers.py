"""What an update looks at: dense weights as flat arrays, units of them, and which of these move."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass
class Layer:
    """A dense weight as flat arrays. Positions neither active nor candidates may not be grown."""

    weight: np.ndarray
    active: np.ndarray
    candidate: np.ndarray
    grad: np.ndarray
    momentum: np.ndarray
    shape: tuple[int, ...] = ()  # of the dense weight; () means a vector
    unit: tuple[int, int] = (1, 1)
    progress: float = 1 / 8  # the part of the training that is over

    @property
    def size(self) -> int:
        """Weights in a unit."""
        return self.unit[0] * self.unit[1]

    def units(self) -> list[list[int]]:
        """Return the flat positions of each unit, in the order of their numbers."""
        return units_of(self.shape or (len(self.weight),), self.unit)


def units_of(shape: Sequence[int], unit: tuple[int, int]) -> list[list[int]]:
    """Return the flat positions of each block of `unit` outputs and inputs at one position of the kernel."""
    outputs, inputs, *kernel = shape if len(shape) > 1 else (*shape, 1)
    flat = np.arange(math.prod(shape)).reshape(outputs, inputs, math.prod(kernel))
    return [
        [int(flat[o + i, c + j, k]) for i in range(unit[0]) for j in range(unit[1])]
        for o in range(0, outputs, unit[0])
        for c in range(0, inputs, unit[1])
        for k in range(flat.shape[2])
    ]


Decision = tuple[list[int], list[int]]
Noise = Callable[[int], Sequence[float]]


def choose(units: Sequence[list[int]], score: np.ndarray, count: int, *, largest: bool) -> list[int]:
    """Return the positions of the `count` units of largest or smallest mean |score|, ties to the lower unit."""
    sign = -1 if largest else 1
    mean = [sign * math.fsum(abs(float(score[i])) for i in unit) / len(unit) for unit in units]
    ranked = sorted(range(len(units)), key=lambda n: (mean[n], min(units[n])))
    return sorted(i for n in ranked[:count] for i in units[n])


def drop_smallest(layer: Layer, rate: float, rounded: Callable[[float], int] = math.ceil) -> list[int]:
    """Return the positions of the active units of smallest magnitude, ties to the lower unit."""
    active = [unit for unit in layer.units() if layer.active[unit].all()]
    return choose(active, layer.weight, rounded(rate * len(active)), largest=False)


def drop_by_sign(layer: Layer, rate: float) -> list[int]:
    """Return the positions of the active units whose weights come first among those of their sign, by magnitude."""
    first = np.zeros(len(layer.weight))
    for negative in (False, True):
        of_sign = [i for unit in layer.units() for i in unit if layer.active[i] and (layer.weight[i] < 0) == negative]
        for number, i in enumerate(sorted(of_sign, key=lambda i: abs(layer.weight[i])), start=1):
            first[i] = number / len(of_sign)
    active = [unit for unit in layer.units() if layer.active[unit].all()]
    return choose(active, first, math.ceil(rate * len(active)), largest=False)


def drop_count(layer: Layer, count: int) -> list[int]:
    """Return the positions of the smallest active units."""
    active = [unit for unit in layer.units() if layer.active[unit].all()]
    return choose(active, layer.weight, count // layer.size, largest=False)


def without_returning(drop: Sequence[int], grow: Sequence[int]) -> Decision:
    """Return what leaves and joins if weights that do both stay as they were."""
    return [i for i in drop if i not in grow], [i for i in grow if i not in drop]


def growable(layer: Layer, dropped: Sequence[int]) -> list[list[int]]:
    """Return the units that may be grown: those that were candidates before, then those dropped."""
    free = [unit for unit in layer.units() if layer.candidate[unit].all()]
    return free + [unit for unit in layer.units() if set(unit) <= set(dropped)]


def grow_largest(layer: Layer, dropped: Sequence[int], score: np.ndarray, count: int) -> list[int]:
    """Return `count` positions, those of the units of largest score among candidates and dropped."""
    return choose(growable(layer, dropped), score, count // layer.size, largest=True)


def rows_of(layer: Layer) -> list[list[list[int]]]:
    """Return the units of each output, or of each group of outputs that a unit spans."""
    units = layer.units()
    count = (layer.shape or (len(layer.weight),))[0] // layer.unit[0]
    in_each = len(units) // count
    return [units[row * in_each : (row + 1) * in_each] for row in range(count)]


def surplus_of(layers: Sequence[Layer], target: int | None) -> int:
    """Return how many weights are too many, in whole units of one size."""
    existing, size = sum(int(layer.active.sum()) for layer in layers), layers[0].size
    return 0 if target is None else -(-(existing - target) // size) * size
