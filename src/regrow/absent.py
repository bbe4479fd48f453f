"""Some absent weights of one layer as a parameter at zero: it has the gradient that they would have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from regrow.positions import find, lookup
from regrow.storage import Weight
from regrow.storage.layer import SparseLayer, rebind


class Absent:
    """Gather the gradient of absent weights of one layer, pass by pass, as the layer's own gradient is gathered.

    Where the layer is stored densely it is read off the dense gradient. Where it is stored sparsely, it is computed
    during the backward pass from the layer's input and the gradient of its output.

    Args:
        weight: the weight.
        positions: flat positions of absent weights, sorted int64.
    """

    def __init__(self, weight: Weight, positions: Tensor) -> None:
        self.weight = weight
        self.positions = positions
        self.parameter = nn.Parameter(weight.weight.new_zeros(len(positions)))
        self._handle: Any = None
        # The layer's own gradient after the last pass: its version, the place of its largest entry, and that entry.
        self._last: tuple[int, Tensor, Tensor] | None = None

    def open(self) -> None:
        """Begin to gather."""
        if isinstance(self.weight.module, SparseLayer):
            self.weight.module.watch = self._watch
            self._handle = self.weight.weight.register_post_accumulate_grad_hook(self._remember)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Gather no more."""
        if isinstance(self.weight.module, SparseLayer):
            self.weight.module.watch = None
            self._handle.remove()

    def collect(self, scale: Tensor | None) -> None:
        """Make the parameter's gradient what the optimizer would see if the weights existed.

        Args:
            scale: what the optimizer will divide gradients by, where it does.
        """
        own = self.weight.weight.grad
        if self.weight.holds_absent:
            self.parameter.grad = None if own is None else self.weight.at(own, self.positions)
        else:
            self._forget_what_was_cleared()
            if self.parameter.grad is not None and own is not None:
                self._scale_as(own)
        if scale is not None and self.parameter.grad is not None:
            self.parameter.grad.div_(scale.to(self.parameter.device))

    def follow(self, positions: Tensor) -> None:
        """Look at other positions from now on."""
        self.positions = positions
        rebind(self.parameter, self.parameter.new_zeros(len(positions)))

    def gradient(self, layer: SparseLayer, x: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient of one pass through the layer, shape (positions,).

        Args:
            layer: the layer.
            x: its input.
            gradient: gradient of its output.
        """
        self._forget_what_was_cleared()
        x = x.to(gradient.dtype)
        if len(self.positions) + self.weight.nonzeros() == self.weight.numel:
            # One dense gradient at a time: it is freed when this returns.
            result = layer.weight_gradient(x, gradient).reshape(-1)[self.positions]
        else:
            result = layer.weight_gradient_at(self.positions, x, gradient)
        return result.to(self.parameter.dtype)

    def _watch(self, layer: SparseLayer, x: Tensor, output: Tensor) -> Tensor:
        watched: Tensor = _Watch.apply(output, x, self.parameter, self, layer)  # type: ignore[no-untyped-call]
        return watched

    def _remember(self, weight: Tensor) -> None:
        if weight.grad is not None and len(weight):
            place = weight.grad.abs().argmax()
            self._last = (weight.grad._version, place, weight.grad[place].clone())

    def _forget_what_was_cleared(self) -> None:
        """Clear the gradient if the layer's own was, whether to None or to zero."""
        own = self.weight.weight.grad
        if own is None or (not own.any() and self._is_touched(own)):
            self.parameter.grad = None

    def _is_touched(self, own: Tensor) -> bool:
        """Return whether a gradient of zeros was something else, or was written to, since the last pass."""
        if self._last is None:
            return True
        version, _, largest = self._last
        # Not everything that writes counts as a version, and not every gradient was above zero before.
        return own._version != version or bool(largest != 0)

    def _scale_as(self, own: Tensor) -> None:
        # Between the backward pass and the step a loop multiplies gradients by one number: a GradScaler to unscale
        # them, clipping to shorten them. The largest entry tells which.
        assert self.parameter.grad is not None
        if self._last is not None:
            _, place, before = self._last
            self.parameter.grad.mul_(torch.where(before == 0, 1, own[place] / before))


class _Watch(torch.autograd.Function):
    """The identity of a layer's output, whose gradient also gives that of absent weights."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, _: Tensor, absent: Absent, layer: SparseLayer) -> Tensor:
        ctx.save_for_backward(x)
        ctx.absent, ctx.layer = absent, layer
        # A view would forbid what follows to work in place.
        return output.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return gradient, None, ctx.absent.gradient(ctx.layer, x, gradient), None, None


def moved(numbers: Tensor, before: Tensor, after: Tensor, joining: Tensor, leaving: Tensor) -> Tensor:
    """Return numbers of absent weights after a change, shape (after,).

    Args:
        numbers: one number for each position in `before`.
        before: positions of the absent weights before, sorted.
        after: positions of the absent weights after, sorted.
        joining: positions of weights that were dropped, some of which may have come back.
        leaving: the number that each of those had.

    Example:
        >>> before, after = torch.tensor([0, 2]), torch.tensor([1, 2])
        >>> moved(torch.tensor([5.0, 6.0]), before, after, joining=torch.tensor([1]), leaving=torch.tensor([7.0]))
        tensor([7., 6.])
    """
    result = lookup(after, before, numbers)
    place, found = find(joining, after)
    result[place[found]] = leaving[found]
    return result
