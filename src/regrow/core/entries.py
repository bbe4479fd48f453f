"""What the update sees of a layer: entries (weights by flat position) and what changes among them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class Entries:
    """Some weights of one layer, as 1-D tensors of equal length.

    Args:
        index: flat row-major positions in the dense weight, int64, each once.
        weight: values of the weights; zero where a weight is absent.
        grad: gradients at the update, or None where the recipe does not need them.
        momentum: the optimizer's momentum, or None where the recipe does not need it.
        generator: source of the random numbers in `noise`.

    Raises:
        ValueError: if the tensors are not 1-D or differ in length.

    Example:
        >>> entries = Entries(index=torch.tensor([0, 3]), weight=torch.tensor([0.5, -2.0]))
        >>> len(entries)
        2
        >>> entries.momentum
        Traceback (most recent call last):
        ...
        ValueError: these entries hold no momentum: name "momentum" in the recipe's `needs`
    """

    __slots__ = ("_generator", "_grad", "_index", "_momentum", "_weight")

    def __init__(
        self,
        index: Tensor,
        weight: Tensor,
        grad: Tensor | None = None,
        momentum: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, field in (("weight", weight), ("grad", grad), ("momentum", momentum)):
            if field is not None and (field.dim() != 1 or field.shape != index.shape):
                raise ValueError(
                    f"{name} has shape {tuple(field.shape)}, but index has {tuple(index.shape)}: "
                    "entries are 1-D tensors of equal length"
                )
        self._index: Tensor | None = index
        self._weight: Tensor | None = weight
        self._grad = grad
        self._momentum = momentum
        self._generator = generator

    def __len__(self) -> int:
        return self.index.numel()

    def __repr__(self) -> str:
        return f"Entries({len(self)} of dtype {self.weight.dtype} on {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.index.device

    @property
    def index(self) -> Tensor:
        """Flat positions, int64, shape (entries,)."""
        assert self._index is not None
        return self._index

    @property
    def weight(self) -> Tensor:
        """Values of the weights, shape (entries,)."""
        assert self._weight is not None
        return self._weight

    @property
    def grad(self) -> Tensor:
        """Gradients at the update, shape (entries,)."""
        if self._grad is None:
            raise ValueError('these entries hold no gradient: name "gradient" in the recipe\'s `needs`')
        return self._grad

    @property
    def momentum(self) -> Tensor:
        """Momentum of the optimizer, shape (entries,)."""
        if self._momentum is None:
            raise ValueError('these entries hold no momentum: name "momentum" in the recipe\'s `needs`')
        return self._momentum

    @property
    def holds_grad(self) -> bool:
        """Whether there is a gradient."""
        return self._grad is not None

    @property
    def holds_momentum(self) -> bool:
        """Whether there is momentum."""
        return self._momentum is not None

    def index_at(self, places: Tensor) -> Tensor:
        """Return the flat positions at ascending places, int64."""
        return self.index[places]

    def noise(self) -> Tensor:
        """Draw a fresh uniform number in [0, 1) for every entry, float64, shape (entries,)."""
        if self._generator is None:
            raise ValueError("these entries hold no generator, so they cannot be scored at random")
        device = self._generator.device
        drawn = torch.rand(len(self), generator=self._generator, dtype=torch.float64, device=device)
        return drawn.to(self.device)

    def with_generator(self, generator: torch.Generator) -> Entries:
        """Return the same entries with `generator` as the source of `noise`."""
        return Entries(self.index, self.weight, self._grad, self._momentum, generator)

    def select(self, chosen: Tensor) -> Entries:
        """Return the entries at the places `chosen` (int64 or bool, 1-D)."""
        grad = None if self._grad is None else self._grad[chosen]
        momentum = None if self._momentum is None else self._momentum[chosen]
        return Entries(self.index[chosen], self.weight[chosen], grad, momentum, self._generator)

    def join(self, other: Entries) -> Entries:
        """Return these entries followed by `other`, whose positions are disjoint from these.

        What only one of the two holds (gradient, momentum) the result does not hold.
        """
        return _Joined(self, other)


class _Joined(Entries):
    """Entries followed by others; a tensor of both is made when it is first read."""

    __slots__ = ("_first", "_second")

    def __init__(self, first: Entries, second: Entries) -> None:
        self._first, self._second, self._generator = first, second, first._generator
        self._index: Tensor | None = None
        self._weight: Tensor | None = None
        self._grad: Tensor | None = None
        self._momentum: Tensor | None = None

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    @property
    def device(self) -> torch.device:
        return self._first.device

    @property
    def index(self) -> Tensor:
        if self._index is None:
            self._index = torch.cat((self._first.index, self._second.index))
        return self._index

    @property
    def weight(self) -> Tensor:
        if self._weight is None:
            self._weight = torch.cat((self._first.weight, self._second.weight))
        return self._weight

    @property
    def grad(self) -> Tensor:
        if self._grad is None and self.holds_grad:
            self._grad = torch.cat((self._first.grad, self._second.grad))
        return super().grad

    @property
    def momentum(self) -> Tensor:
        if self._momentum is None and self.holds_momentum:
            self._momentum = torch.cat((self._first.momentum, self._second.momentum))
        return super().momentum

    @property
    def holds_grad(self) -> bool:
        return self._first.holds_grad and self._second.holds_grad

    @property
    def holds_momentum(self) -> bool:
        return self._first.holds_momentum and self._second.holds_momentum

    def index_at(self, places: Tensor) -> Tensor:
        ahead = int((places < len(self._first)).sum())
        first, second = self._first.index_at(places[:ahead]), self._second.index_at(places[ahead:] - len(self._first))
        return torch.cat((first, second))

    def with_generator(self, generator: torch.Generator) -> Entries:
        return _Joined(self._first.with_generator(generator), self._second)

    def select(self, chosen: Tensor) -> Entries:
        grad = self.grad[chosen] if self.holds_grad else None
        momentum = self.momentum[chosen] if self.holds_momentum else None
        return Entries(self.index[chosen], self.weight[chosen], grad, momentum, self._generator)


@dataclass(frozen=True)
class LayerState:
    """One layer as the update sees it.

    Attributes:
        active: the weights that exist.
        candidates: positions that may be grown, disjoint from `active`.
        numel: number of elements of the dense weight.
        shape: shape of the dense weight.
    """

    active: Entries
    candidates: Entries
    numel: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """What an update does to one layer: flat positions that leave and positions that join, ascending int64.

    A position in both was dropped and came back: its weight starts again at zero.
    """

    drop: Tensor
    grow: Tensor
