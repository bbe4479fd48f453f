"""A training by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reference.layers import Layer, Noise
from reference.methods import UPDATES

RESETS = {"set", "rigl", "dsr", "granet", "itop", "mest", "acdc", "srigl", "chts", "gse"}
# Methods whose update takes the place of a step.
REPLACES = {"rigl", "srigl"}


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
    units: Sequence[tuple[int, int]] = ((1, 1), (1, 1))

    def __post_init__(self) -> None:
        self.buffers: list[np.ndarray] = []
        self.gradients: list[np.ndarray] = []

    def step(self, x: np.ndarray, target: np.ndarray, *, moves_weights: bool = True) -> None:
        """Take a step, or find the gradient of one alone."""
        hidden = np.tanh(x @ self.weights[0].T)
        error = 2 * (hidden @ self.weights[1].T - target) / target.size
        into_hidden = (error @ self.weights[1]) * (1 - hidden**2)
        self.gradients = [into_hidden.T @ x, error.T @ hidden]

        if not moves_weights:
            return
        moves = [g + self.weight_decay * w for g, w in zip(self.gradients, self.weights, strict=True)]
        if self.momentum:
            previous = self.buffers or [np.zeros_like(move) for move in moves]
            self.buffers = [self.momentum * b + move for b, move in zip(previous, moves, strict=True)]
            after = zip(moves, self.buffers, strict=True)
            moves = [move + self.momentum * b if self.nesterov else b for move, b in after]
        self.weights = [
            (w - self.lr * move) * mask for w, move, mask in zip(self.weights, moves, self.masks, strict=True)
        ]

    def update(
        self, method: str, rate: float, noise: Noise, target: int | None = None, *, progress: float = 0.0
    ) -> None:
        """Carry out one update of `method`, in place."""
        buffers = self.buffers or [np.zeros_like(w) for w in self.weights]
        layers = [
            Layer(w.ravel(), mask.ravel(), ~mask.ravel(), g.ravel(), b.ravel(), w.shape, unit, progress)
            for w, mask, g, b, unit in zip(self.weights, self.masks, self.gradients, buffers, self.units, strict=True)
        ]
        for i, (drop, grow) in enumerate(UPDATES[method](layers, rate, noise, target)):
            self.weights[i].ravel()[drop] = 0
            self.masks[i].ravel()[drop] = False
            self.masks[i].ravel()[grow] = True
            if method in RESETS and self.buffers:
                self.buffers[i].ravel()[grow] = 0
            if method == "acdc" and self.buffers and grow:
                self.buffers[i][:] = 0
