"""Some absent weights of one layer as a parameter at zero: it has the gradient that they would have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regrow.positions import compact, find, lookup
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
        self.parameter = nn.Parameter(weight.weight.new_zeros(len(positions)))
        self._positions = compact(positions, weight.numel)
        self._handles: list[Any] = []
        # The layer's own gradient after the last pass: its version, the place of its largest entry, and that entry.
        self._last: tuple[int, Tensor, Tensor] | None = None
        # Whether this gradient has come in the pass that is under way, and the layer's own has not yet.
        self._ahead = False

    @property
    def positions(self) -> Tensor:
        """Flat positions of the absent weights, sorted int64."""
        return self._positions.long()

    def open(self) -> None:
        """Begin to gather."""
        if isinstance(self.weight.module, SparseLayer):
            own = self.weight.weight
            self._watch(self.weight.module)
            self._handles = [
                own.register_hook(self._before_own),  # type: ignore[no-untyped-call]
                self.parameter.register_hook(self._before),  # type: ignore[no-untyped-call]
                own.register_post_accumulate_grad_hook(self._after_own),  # type: ignore[no-untyped-call]
            ]

    def close(self) -> None:
        """Gather no more."""
        if isinstance(self.weight.module, SparseLayer):
            self.weight.module.watched = None
            for handle in self._handles:
                handle.remove()

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
        self._positions = compact(positions, self.weight.numel)
        rebind(self.parameter, self.parameter.new_zeros(len(positions)))
        if isinstance(self.weight.module, SparseLayer):
            self._watch(self.weight.module)

    def empty(self) -> None:
        """Let go of all positions; call it when nothing is gathered any more."""
        self._positions = self._positions.new_empty(0)
        rebind(self.parameter, self.parameter.new_zeros(0))

    def _watch(self, layer: SparseLayer) -> None:
        layer.watched = None
        layer.watched = layer.watching(self.parameter, self._positions)

    # Within a pass either gradient may come first; what was cleared is let go of before either is added.

    def _before(self, _: Tensor) -> None:
        self._forget_what_was_cleared()
        self._ahead = True

    def _before_own(self, _: Tensor) -> None:
        if not self._ahead:
            self._forget_what_was_cleared()

    def _after_own(self, weight: Tensor) -> None:
        self._ahead = False
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
