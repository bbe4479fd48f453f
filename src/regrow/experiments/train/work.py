"""The multiply-adds of a training: what its sparse layers compute, and what the dense ones would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from regrow.convert.uses import positions_of_sample
from regrow.storage import Weight, sparse_weights

__all__ = ["Work"]

# The forward pass, the gradient of the inputs and that of the weights take as many each.
_PASSES = 3


class Work:
    """Counts multiply-adds of the layers that may be sparse, over the steps of a training.

    What growth reads of absent weights, biases, norms and all other operations are not in it.

    Args:
        model: the model, with every weight that may be sparse in some storage.
        example: a batch of one sample.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        weights = sparse_weights(model)
        self._costs = positions_of_sample(model, weights, (example,))
        self._samples, self._done = 0, 0.0
        self._dense = sum(self._costs[name] * weight.numel for name, weight in weights.items())
        self.look(weights)

    def look(self, weights: Mapping[str, Weight]) -> None:
        """Note how many weights there are, from now on."""
        self._now = sum(self._costs[name] * weight.nonzeros() for name, weight in weights.items())

    def add(self, samples: int) -> None:
        """Count a step on so many samples."""
        self._samples += samples
        self._done += samples * self._now

    def row(self) -> dict[str, int]:
        """Return what is known after an epoch, as metrics name it."""
        return {
            "multiply_adds": round(self._now),
            "multiply_adds_dense": round(self._dense),
            "multiply_adds_train": round(_PASSES * self._done),
            "multiply_adds_train_dense": round(_PASSES * self._samples * self._dense),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted."""
        return {"samples": self._samples, "done": self._done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._samples, self._done = state["samples"], state["done"]
