"""What all layers with a sparsely stored weight share: values and positions as ordinary module state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regrow.ops import gradient
from regrow.ops.gradient import watch
from regrow.ops.pattern import Geometry, Pattern
from regrow.ops.select import obstacle

__all__ = ["SparseLayer", "Watched", "rebind"]


class Watched(NamedTuple):
    """Weights that a layer does not have, whose gradient is wanted with every backward pass.

    Attributes:
        parameter: stands for them, at zero, shape (positions,).
        pattern: where they stand in the dense weight; None for every position of it, those of weights that exist too.
        shape: shape of the dense weight, with the two or four dimensions that the kernels know.
    """

    parameter: nn.Parameter
    pattern: Pattern | None
    shape: tuple[int, ...]


class SparseLayer(nn.Module, ABC):
    """A layer that stores the weights that exist, and no others.

    Its parameter is `values`, shape (nonzeros,), in the order of the buffer `index`, the sorted flat positions in the
    dense weight (int32 where that is enough): so gradients and optimizer state are as small, and `state_dict`,
    `deepcopy`, `pickle` and `.to()` carry both along. A state dict with another number of nonzeros can be loaded; the
    parameter stays the same object.

    Args:
        values: the weights that exist, shape (nonzeros,).
        index: their flat positions in the dense weight, sorted, int32 or int64.
        bias: one number for each output, or None.

    Attributes:
        watched: set while growth needs the gradient of absent weights; no part of the module's state.
        geometry: stride, padding, dilation and groups, as the kernels know them.
    """

    geometry: Geometry

    def __init__(self, values: Tensor, index: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.values = _parameter(values)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None if bias is None else _parameter(bias))
        self.index: Tensor
        self.register_buffer("index", index)
        self.watched: Watched | None = None
        self._pattern: Pattern | None = None

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""

    @abstractmethod
    def enter(self, x: Tensor) -> Tensor:
        """Return an input as the product takes it: of the dimensions that the kernels know, padded."""

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """Return the output for an input that has entered."""

    @abstractmethod
    def leave(self, output: Tensor, x: Tensor) -> Tensor:
        """Return an output of the product as the ordinary layer returns it for the input `x`."""

    @abstractmethod
    def to_dense(self) -> nn.Module:
        """Return the ordinary layer that computes the same, with absent weights at zero."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to an input as the ordinary layer takes it; under autocast on the CPU in float32."""
        entered = self.enter(x)
        output = self.product(entered)
        watched = self.watched
        if watched is not None and torch.is_grad_enabled():
            output = watch(output, entered, watched.parameter, watched.pattern, watched.shape, self.geometry)
        return self.leave(output, x)

    @property
    def pattern(self) -> Pattern:
        """The index structure that the kernels use; made anew only when the positions change."""
        if self._pattern is None:
            self._pattern = self.pattern_of(self.index.cpu())
        return self._pattern

    def watching(self, parameter: nn.Parameter, positions: Tensor | None) -> Watched:
        """Return what `watched` takes to gather the gradient of absent weights, with its index structure made.

        Args:
            parameter: stands for the weights, at zero, shape (positions,).
            positions: their flat positions, sorted, int32 or int64; None for every position of the dense weight.
        """
        if positions is None:
            return Watched(parameter, None, self._pattern_shape)
        pattern = self.pattern_of(positions.cpu())
        gradient.prepare(pattern, parameter, self.geometry)
        return Watched(parameter, pattern, self._pattern_shape)

    def pattern_of(self, positions: Tensor) -> Pattern:
        """Return the index structure of other positions of this layer's weight."""
        return Pattern(self._pattern_shape, positions)

    def prepare(self) -> None:
        """Make the index structures that the kernels will ask for: `torch.compile` would not see through that."""
        if obstacle("conv2d", self.values.device, self.values.dtype) is None:
            self.pattern.forward_blocks(self.geometry)
            self.pattern.transposed_blocks(self.geometry)

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
            index: flat positions in the dense weight, sorted, int32 or int64.
            values: the weights at these positions.
        """
        # The old structures go before the new ones are made: at no time are there both.
        self._pattern = None
        rebind(self.values, values)
        self.index = index
        self.prepare()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is not the layer's own: a copy is not watched, and makes its own pattern."""
        return {**self.__dict__, "watched": None, "_pattern": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state and make the pattern."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.prepare()

    def _apply(self, *args: Any, **kwargs: Any) -> SparseLayer:
        """Move or convert the layer; the kernels may serve it now, or no more."""
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.prepare()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, *lists: list[str]
    ) -> None:
        values, index = (state_dict.get(prefix + name) for name in ("values", "index"))
        if values is not None and index is not None and not self._has(index):
            try:
                pattern = self.pattern_of(index.cpu())
            except ValueError as error:
                *_, errors = lists
                errors.append(f"{prefix}index does not fit this layer: {error}")
                return
            self.replace(index.to(self.index, copy=True), self.values.new_empty(pattern.nonzeros))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)

    def _has(self, index: Tensor) -> bool:
        """Return whether these are the positions of the layer's weights."""
        return index.shape == self.index.shape and bool((index.cpu() == self.index.cpu()).all())


def rebind(parameter: nn.Parameter, data: Tensor) -> None:
    """Let a parameter hold other numbers, of any count; it stays the same object, and its gradient becomes None."""
    parameter.grad = None
    # A graph still alive somewhere, as that of the last loss, keeps the node that accumulates the gradient, and that
    # keeps the old shape. PyTorch makes a new one when the dtype changes, so it changes for a moment.
    parameter.data = data.new_empty(0, dtype=torch.bfloat16 if data.dtype != torch.bfloat16 else torch.float32)
    parameter.data = data
    # A backward pass of a graph from before would take the new numbers for the old ones: so it raises.
    if not parameter.is_inference():
        torch.autograd.graph.increment_version(parameter)


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=tensor.requires_grad)
