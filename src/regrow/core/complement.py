"""All positions of a layer where no weight exists, as entries that are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regrow.core.entries import Entries
from regrow.core.positions import absent, leave_out, of_ranks


class Complement(Entries):
    """Every position of a layer that has no active weight, ascending; behind them the entries that were joined.

    A score reads one or two of the tensors, so each is made when it is first read, which must be within the update:
    at low densities they are nearly as large as the dense weight.

    Args:
        active: sorted flat positions of the active weights, int64.
        numel: number of elements of the dense weight.
        zero: the weight of an absent position, shape ().
        grad: returns the gradient of every position of the dense weight, flat; None where there is none.
        momentum: the same for the optimizer's momentum.
        generator: source of the random numbers in `noise`.
        behind: entries that follow, at positions that the rest does not have.

    Example:
        >>> dense = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> absent = Complement(torch.tensor([1]), 4, torch.zeros(()), momentum=lambda: dense)
        >>> absent.index, absent.momentum
        (tensor([0, 2, 3]), tensor([1., 3., 4.]))
    """

    __slots__ = ("_active", "_behind", "_dense_grad", "_dense_momentum", "_numel", "_zero")

    def __init__(
        self,
        active: Tensor,
        numel: int,
        zero: Tensor,
        grad: Callable[[], Tensor] | None = None,
        momentum: Callable[[], Tensor] | None = None,
        generator: torch.Generator | None = None,
        behind: Entries | None = None,
    ) -> None:
        self._active, self._numel, self._zero = active, numel, zero
        self._dense_grad, self._dense_momentum = grad, momentum
        self._generator, self._behind = generator, behind
        self._index: Tensor | None = None
        self._weight: Tensor | None = None
        self._grad: Tensor | None = None
        self._momentum: Tensor | None = None

    def __len__(self) -> int:
        return self._inactive + (0 if self._behind is None else len(self._behind))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._active.device

    @property
    def index(self) -> Tensor:
        """Flat positions, int64, shape (entries,)."""
        if self._index is None:
            positions = absent(self._active, self._numel)
            self._index = positions if self._behind is None else torch.cat((positions, self._behind.index))
        return self._index

    @property
    def weight(self) -> Tensor:
        """Values of the weights, shape (entries,)."""
        if self._weight is None:
            # one zero seen from everywhere needs no memory
            zeros = self._zero.expand(self._inactive)
            self._weight = zeros if self._behind is None else torch.cat((zeros, self._behind.weight))
        return self._weight

    @property
    def grad(self) -> Tensor:
        """Gradients at the update, shape (entries,)."""
        if self._grad is None and self._dense_grad is not None:
            self._grad = self._cut(self._dense_grad(), None if self._behind is None else self._behind.grad)
        return super().grad

    @property
    def momentum(self) -> Tensor:
        """Momentum of the optimizer, shape (entries,)."""
        if self._momentum is None and self._dense_momentum is not None:
            self._momentum = self._cut(self._dense_momentum(), None if self._behind is None else self._behind.momentum)
        return super().momentum

    def index_at(self, places: Tensor) -> Tensor:
        """Return the flat positions at ascending places, int64."""
        first = int((places < self._inactive).sum())
        positions = of_ranks(places[:first], self._active)
        if self._behind is None:
            return positions
        return torch.cat((positions, self._behind.index_at(places[first:] - self._inactive)))

    def with_generator(self, generator: torch.Generator) -> Complement:
        """Return the same entries with `generator` as the source of `noise`."""
        return self._like(self._dense_grad, self._dense_momentum, generator, self._behind)

    def select(self, chosen: Tensor) -> Entries:
        """Return the entries at the places `chosen` (int64 or bool, 1-D)."""
        grad = self.grad[chosen] if self.holds_grad else None
        momentum = self.momentum[chosen] if self.holds_momentum else None
        return Entries(self.index[chosen], self.weight[chosen], grad, momentum, self._generator)

    def join(self, other: Entries) -> Entries:
        """Return these entries followed by `other`, whose positions are disjoint from these.

        What only one of the two holds (gradient, momentum) the result does not hold.
        """
        if self._behind is not None:
            return super().join(other)
        grad, momentum = self._dense_grad, self._dense_momentum
        return self._like(
            grad if other.holds_grad else None, momentum if other.holds_momentum else None, self._generator, other
        )

    @property
    def holds_grad(self) -> bool:
        """Whether there is a gradient."""
        return self._dense_grad is not None

    @property
    def holds_momentum(self) -> bool:
        """Whether there is momentum."""
        return self._dense_momentum is not None

    @property
    def _inactive(self) -> int:
        return self._numel - len(self._active)

    def _cut(self, dense: Tensor, behind: Tensor | None) -> Tensor:
        if behind is None:
            return leave_out(dense, self._active)
        numbers = leave_out(dense, self._active, room=len(behind))
        numbers[self._inactive :] = behind
        return numbers

    def _like(
        self,
        grad: Callable[[], Tensor] | None,
        momentum: Callable[[], Tensor] | None,
        generator: torch.Generator | None,
        behind: Entries | None,
    ) -> Complement:
        return Complement(self._active, self._numel, self._zero, grad, momentum, generator, behind)
