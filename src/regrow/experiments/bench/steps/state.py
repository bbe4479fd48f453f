"""What a training holds between steps, counted in tensors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regrow.experiments.bench.steps.training import Training
from regrow.nn.sparse_layer import SparseLayer
from regrow.storage import sparse_weights

__all__ = ["State", "state_of"]


@dataclass(frozen=True)
class State:
    """What a training holds between steps, in bytes; activations are not in it.

    Attributes:
        weights: parameters and buffers, as running statistics.
        index: positions and index structures, or masks.
        gradients: of the parameters.
        optimizer: its state.
    """

    weights: int
    index: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.index + self.gradients + self.optimizer


def state_of(training: Training) -> State:
    """Count what a training holds after a step."""
    parameters = list(training.model.parameters())
    sparse = sparse_weights(training.model).values()
    layers = [module for module in training.model.modules() if isinstance(module, SparseLayer)]
    # A sparse layer's buffer of positions is part of its index structures.
    positions = sum(layer.index.nbytes for layer in layers)
    buffers = sum(buffer.nbytes for buffer in training.model.buffers())
    index = sum(weight.bytes - weight.weight.nbytes for weight in sparse)
    masks = index - sum(layer.pattern.nbytes for layer in layers)
    kept = [value for state in training.optimizer.state.values() for value in state.values()]
    return State(
        weights=sum(parameter.nbytes for parameter in parameters) + buffers - positions - masks,
        index=index,
        gradients=sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None),
        optimizer=sum(value.nbytes for value in kept if isinstance(value, Tensor)),
    )
