"""What a sparse layer's parameter covers, put aside for a step of the optimizer on active weights alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from regrow.nn.sparse_layer import SparseLayer, exclusive
from regrow.storage.values import existing

__all__ = ["Aside"]


class Aside:
    """Let the parameter of a layer that covers absent weights hold the active ones alone, until it is brought back.

    Its gradient goes along. The layer computes all the while, and the parameter stays the same object.

    Args:
        layer: the layer; its parameter covers absent weights and has a gradient.
        state: tensors of optimizer state in the parameter's shape.

    Attributes:
        gradient: of all that the parameter covered.
        state: the tensors of optimizer state of all that it covered, the same objects.
        active: copies of them for the active weights.
    """

    @torch.no_grad()
    def __init__(self, layer: SparseLayer, state: Mapping[str, Tensor]) -> None:
        covered, gradient = layer.covered, layer.values.grad
        assert covered is not None
        assert gradient is not None
        self.gradient, self.state = gradient, dict(state)
        self.active = {key: existing(layer, tensor) for key, tensor in state.items()}
        self._layer, self._covered, self._values = layer, covered, layer.values.data
        self._given = existing(layer, gradient)
        with exclusive:
            layer.values.grad = None
            layer.values.data = existing(layer, self._values)
            layer.covered = None
        layer.values.grad = self._given

    @torch.no_grad()
    def bring_back(self, state: Mapping[str, Tensor]) -> None:
        """Let the parameter cover what it covered: active weights as they are now, absent ones at zero.

        Args:
            state: tensors of optimizer state of active weights, which are written into those of all.
        """
        parameter, active = self._layer.values, self._covered.active.long()
        for key, tensor in self.state.items():
            tensor.index_copy_(0, active, state[key])
        self._values.zero_().index_copy_(0, active, parameter.data)
        gradient = self._gradient()
        with exclusive:
            parameter.grad = None
            parameter.data = self._values
            self._layer.covered = self._covered
        parameter.grad = gradient

    def _gradient(self) -> Tensor | None:
        """Return the gradient of all that was covered; where a step failed there may be another by now."""
        now = self._layer.values.grad
        if now is self._given or now is None:
            return self.gradient if now is self._given else None
        gradient = torch.zeros_like(self.gradient)
        gradient[self._covered.active] = now
        return gradient
