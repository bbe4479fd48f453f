"""What all layers with a sparsely stored weight share: values and positions as ordinary module state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regrow.pattern import Pattern

Watch = Callable[["SparseLayer", Tensor, Tensor], Tensor]
"""From a layer, its input and its output to the output, watched for its gradient."""


class SparseLayer(nn.Module, ABC):
    """A layer that stores the weights that exist, and no others.

    Its parameter is `values`, shape (nonzeros,), in the order of the buffer `index`, the sorted flat positions in the
    dense weight: so gradients and optimizer state are as small, and `state_dict`, `deepcopy`, `pickle` and `.to()`
    carry both along. A state dict with another number of nonzeros can be loaded; the parameter stays the same object.

    Args:
        values: the weights that exist, shape (nonzeros,).
        index: their flat positions in the dense weight, sorted int64.
        bias: one number for each output, or None.

    Attributes:
        watch: sees input and output of every forward pass that will have gradients; set while growth needs the
            gradient of absent weights, and no part of the module's state.
    """

    def __init__(self, values: Tensor, index: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.values = _parameter(values)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None if bias is None else _parameter(bias))
        self.index: Tensor
        self.register_buffer("index", index)
        self.watch: Watch | None = None
        self._pattern: Pattern | None = None

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """Return the layer's output for the input `x`."""

    @abstractmethod
    def weight_gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient of the dense weight, in its shape.

        Args:
            x: input of the layer.
            gradient: gradient of its output.
        """

    @abstractmethod
    def weight_gradient_at(self, positions: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient of the dense weight at flat positions, shape (positions,), and make no others.

        Args:
            positions: flat positions in the dense weight, int64.
            x: input of the layer.
            gradient: gradient of its output.
        """

    @abstractmethod
    def to_dense(self) -> nn.Module:
        """Return the ordinary layer that computes the same, with absent weights at zero."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to an input as the ordinary layer takes it."""
        output = self.product(x)
        if self.watch is not None and torch.is_grad_enabled():
            return self.watch(self, x, output)
        return output

    @property
    def pattern(self) -> Pattern:
        """The index structure that the kernels use; made anew only when the positions change."""
        if self._pattern is None:
            self._pattern = Pattern(self._pattern_shape, self.index.cpu())
        return self._pattern

    @property
    def _pattern_shape(self) -> tuple[int, ...]:
        """The dense shape with the two or four dimensions that the kernels know."""
        return self.shape

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """Return the weight as a new dense tensor, zero where weights are absent."""
        dense = self.values.new_zeros(math.prod(self.shape))
        dense[self.index] = self.values
        return dense.view(self.shape)

    def replace(self, index: Tensor, values: Tensor) -> None:
        """Take other positions and values, of any number; the parameter stays the same object.

        The gradient, which belonged to the old ones, is set to None.

        Args:
            index: flat positions in the dense weight, sorted int64.
            values: the weights at these positions.
        """
        rebind(self.values, values)
        self.index = index
        self._pattern = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is not the layer's own: a copy is not watched, and makes its own pattern."""
        return {**self.__dict__, "watch": None, "_pattern": None}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, *lists: list[str]
    ) -> None:
        values, index = (state_dict.get(prefix + name) for name in ("values", "index"))
        if values is not None and index is not None and not torch.equal(index.cpu(), self.index.cpu()):
            try:
                pattern = Pattern(self._pattern_shape, index.cpu())
            except ValueError as error:
                *_, errors = lists
                errors.append(f"{prefix}index does not fit this layer: {error}")
                return
            self.replace(index.to(self.index.device).clone(), self.values.new_empty(pattern.nonzeros))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)


def rebind(parameter: nn.Parameter, data: Tensor) -> None:
    """Let a parameter hold other numbers, of any count; it stays the same object, and its gradient becomes None."""
    parameter.grad = None
    # A graph still alive somewhere, as that of the last loss, keeps the node that accumulates the gradient, and that
    # keeps the old shape. PyTorch makes a new one when the dtype changes, so it changes for a moment.
    parameter.data = data.new_empty(0, dtype=torch.bfloat16 if data.dtype != torch.bfloat16 else torch.float32)
    parameter.data = data


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=tensor.requires_grad)
