"""Absent weights of one layer, all or some, as a parameter at zero: it has the gradient that they would have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regrow.core.positions import compact, find
from regrow.nn.sparse_layer import SparseLayer, rebind
from regrow.storage import Weight


class Absent:
    """Gather the gradient of absent weights of one layer, pass by pass, as the layer's own gradient is gathered.

    Where the layer is stored densely it is read off the dense gradient. Where it is stored sparsely, it is computed
    during the backward pass from the layer's input and the gradient of its output.

    Where all absent weights are looked at, the parameter has a number for every position of the dense weight: those of
    weights that exist mean nothing, and in return no position is stored or looked up.

    Args:
        weight: the weight.
        positions: flat positions of absent weights, sorted; None for all.
        existing: where all are looked at, the sorted flat positions of the weights that exist; None for those that do.
    """

    def __init__(self, weight: Weight, positions: Tensor | None, existing: Tensor | None = None) -> None:
        self.weight = weight
        count = weight.numel if positions is None else len(positions)
        self.parameter = nn.Parameter(weight.weight.new_zeros(count))
        self._positions = None if positions is None else compact(positions, weight.numel)
        self._existing: Tensor | None = None
        if positions is None:
            self._existing = compact(weight.index() if existing is None else existing, weight.numel)
        self._handles: list[Any] = []
        # The layer's own gradient after the last pass: its version, the place of its largest entry, and that entry.
        self._last: tuple[int, Tensor, Tensor] | None = None
        # Whether this gradient has come in the pass that is under way, and the layer's own has not yet.
        self._ahead = False

    @property
    def positions(self) -> Tensor | None:
        """Flat positions of the absent weights, sorted int64; None for all."""
        return None if self._positions is None else self._positions.long()

    @property
    def existing(self) -> Tensor | None:
        """Flat positions of the weights that exist, sorted int32 or int64; None where some positions are looked at."""
        return self._existing

    def fits(self, index: Tensor) -> bool:
        """Return whether what is looked at is absent if the weights at `index`, sorted int64, exist."""
        if self._existing is not None:
            return torch.equal(self._existing, compact(index, self.weight.numel))
        assert self._positions is not None
        return not find(compact(index, self.weight.numel), self._positions)[1].any()

    def find(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the place of flat positions in the parameter, and whether each is looked at at all."""
        small = compact(positions, self.weight.numel)
        if self._existing is not None:
            return positions, ~find(small, self._existing)[1]
        assert self._positions is not None
        return find(small, self._positions)

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
            self.parameter.grad = None if own is None else self._of_dense(own)
        else:
            self._forget_what_was_cleared()
            if self.parameter.grad is not None and own is not None:
                self._scale_as(own)
        if scale is not None and self.parameter.grad is not None:
            self.parameter.grad.div_(scale.to(self.parameter.device))

    def follow(self) -> None:
        """Look at what is absent now; call it when the weight has changed, where all absent weights are looked at."""
        self.parameter.grad = None
        self._existing = compact(self.weight.index(), self.weight.numel)

    def empty(self) -> None:
        """Let go of all positions; call it when nothing is gathered any more."""
        self._positions, self._existing = self.parameter.new_empty(0, dtype=torch.int32), None
        rebind(self.parameter, self.parameter.new_zeros(0))

    def _of_dense(self, own: Tensor) -> Tensor:
        positions = self.positions
        # The optimizer may change its gradients when it steps.
        return own.reshape(-1).clone() if positions is None else self.weight.at(own, positions)

    def _watch(self, layer: SparseLayer) -> None:
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
