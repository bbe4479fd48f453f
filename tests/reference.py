"""The methods once more: slow, plain, over dense arrays, written from the definitions and not from the library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass
class Layer:
    """A dense weight as flat arrays. Positions neither active nor candidates may not be grown."""

    weight: np.ndarray
    active: np.ndarray
    candidate: np.ndarray
    grad: np.ndarray
    momentum: np.ndarray


Decision = tuple[list[int], list[int]]
Noise = Callable[[int], Sequence[float]]


def water_fill(total: int, share: Sequence[Fraction], room: Sequence[int]) -> list[Fraction]:
    """Return `min(room, level * share)` with the level at which the sum is `total`.

    Once every name with a share is full, those without one share the rest as equals.
    """
    open_names = [i for i in range(len(share)) if share[i] > 0]
    if sum(room[i] for i in open_names) <= total:
        quota = [Fraction(room[i]) if share[i] > 0 else Fraction(0) for i in range(len(share))]
        rest = [i for i in range(len(share)) if share[i] == 0]
        if rest:
            left = total - int(sum(quota))
            for i, part in zip(rest, water_fill(left, [Fraction(1)] * len(rest), [room[i] for i in rest]), strict=True):
                quota[i] = part
        return quota
    full: list[int] = []
    for i in sorted(open_names, key=lambda i: room[i] / share[i]):
        level = room[i] / share[i]
        if sum(min(Fraction(room[k]), level * share[k]) for k in open_names) > total:
            break
        full.append(i)
    taken = sum(room[i] for i in full)
    level = (total - taken) / sum(share[i] for i in open_names if i not in full)
    return [Fraction(room[i]) if i in full else level * share[i] for i in range(len(share))]


def apportion(total: int, share: Sequence[Fraction], room: Sequence[int]) -> list[int]:
    """Hand out whole units: the water filling, rounded by largest remainder, ties to the earlier."""
    quota = water_fill(total, share, room)
    result = [math.floor(q) for q in quota]
    order = sorted(range(len(quota)), key=lambda i: (result[i] - quota[i], i))
    for i in order[: total - sum(result)]:
        result[i] += 1
    return result


def drop_smallest(layer: Layer, rate: float) -> list[int]:
    """Return the `ceil(rate * nonzeros)` active positions of smallest magnitude, ties to the lower index."""
    active = [i for i, exists in enumerate(layer.active) if exists]
    count = math.ceil(rate * len(active))
    return sorted(sorted(active, key=lambda i: (abs(layer.weight[i]), i))[:count])


def grow_largest(layer: Layer, dropped: Sequence[int], score: np.ndarray, count: int) -> list[int]:
    """Return the `count` positions of largest score among candidates and dropped, ties to the lower index."""
    absent = growable(layer, dropped)
    return sorted(sorted(absent, key=lambda i: (-abs(score[i]), i))[:count])


def growable(layer: Layer, dropped: Sequence[int]) -> list[int]:
    return sorted([i for i, free in enumerate(layer.candidate) if free] + list(dropped))


def sparse_momentum(layers: Sequence[Layer], rate: float, noise: Noise) -> list[Decision]:
    """Drop by magnitude, pool, share by mean |momentum| over active weights before the drop, grow by |momentum|."""
    dropped = [drop_smallest(layer, rate) for layer in layers]
    share = []
    for layer in layers:
        values = [abs(float(m)) for m in layer.momentum[layer.active]]
        share.append(Fraction(math.fsum(values) / len(values)) if values else Fraction(0))
    room = [len(growable(layer, drop)) for layer, drop in zip(layers, dropped, strict=True)]
    counts = apportion(sum(map(len, dropped)), share, room)
    return [
        (drop, grow_largest(layer, drop, layer.momentum, count))
        for layer, drop, count in zip(layers, dropped, counts, strict=True)
    ]


def set_(layers: Sequence[Layer], rate: float, noise: Noise) -> list[Decision]:
    """Drop by magnitude; grow as many in the same layer where the noise is largest."""
    decisions = []
    for layer in layers:
        drop = drop_smallest(layer, rate)
        in_draw_order = [*np.flatnonzero(layer.candidate), *sorted(drop)]  # what was absent before, then the dropped
        drawn = np.zeros(len(layer.weight))
        drawn[in_draw_order] = noise(len(in_draw_order))
        decisions.append((drop, grow_largest(layer, drop, drawn, len(drop))))
    return decisions


def rigl(layers: Sequence[Layer], rate: float, noise: Noise) -> list[Decision]:
    """Drop by magnitude; grow as many in the same layer where |gradient| is largest."""
    drops = [drop_smallest(layer, rate) for layer in layers]
    return [(drop, grow_largest(layer, drop, layer.grad, len(drop))) for layer, drop in zip(layers, drops, strict=True)]


def static(layers: Sequence[Layer], rate: float, noise: Noise) -> list[Decision]:
    return [([], []) for _ in layers]


UPDATES = {"static": static, "set": set_, "rigl": rigl, "sparse-momentum": sparse_momentum}


def cosine(start: float, end: float, step: int, steps: int) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


# The prune rate of each method at a step of a training of `steps` steps.
RATES: dict[str, Callable[[int, int], float]] = {
    "static": lambda step, steps: 0.0,
    "set": lambda step, steps: 0.3,
    "rigl": lambda step, steps: cosine(0.3, 0.0, step, round(0.75 * steps)),
    "sparse-momentum": lambda step, steps: cosine(0.5, 0.005, step, steps),
}
RESETS = {"set", "rigl"}


@dataclass
class Trainer:
    """Sparse training of a two-layer perceptron by hand: `tanh(x @ w0.T) @ w1.T`, mean squared error, SGD.

    Every tensor is dense; a mask is multiplied on after each step.
    """

    weights: list[np.ndarray]
    masks: list[np.ndarray]
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float

    def __post_init__(self) -> None:
        self.buffers: list[np.ndarray] = []
        self.gradients: list[np.ndarray] = []

    def step(self, x: np.ndarray, target: np.ndarray) -> None:
        hidden = np.tanh(x @ self.weights[0].T)
        error = 2 * (hidden @ self.weights[1].T - target) / target.size
        into_hidden = (error @ self.weights[1]) * (1 - hidden**2)
        self.gradients = [into_hidden.T @ x, error.T @ hidden]

        moves = [g + self.weight_decay * w for g, w in zip(self.gradients, self.weights, strict=True)]
        if self.momentum:
            previous = self.buffers or [np.zeros_like(move) for move in moves]
            self.buffers = [self.momentum * b + move for b, move in zip(previous, moves, strict=True)]
            after = zip(moves, self.buffers, strict=True)
            moves = [move + self.momentum * b if self.nesterov else b for move, b in after]
        self.weights = [
            (w - self.lr * move) * mask for w, move, mask in zip(self.weights, moves, self.masks, strict=True)
        ]

    def update(self, method: str, rate: float, noise: Noise) -> None:
        """Carry out one update of `method`, in place."""
        buffers = self.buffers or [np.zeros_like(w) for w in self.weights]
        layers = [
            Layer(w.ravel(), mask.ravel(), ~mask.ravel(), g.ravel(), b.ravel())
            for w, mask, g, b in zip(self.weights, self.masks, self.gradients, buffers, strict=True)
        ]
        for i, (drop, grow) in enumerate(UPDATES[method](layers, rate, noise)):
            self.weights[i].ravel()[drop] = 0
            self.masks[i].ravel()[drop] = False
            self.masks[i].ravel()[grow] = True
            if method in RESETS and self.buffers:
                self.buffers[i].ravel()[grow] = 0
