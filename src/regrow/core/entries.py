"""What the update sees of a layer: entries (weights by flat position) and what changes among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from regrow.core.positions import absent, leave_out, of_ranks
from regrow.core.units import Units

__all__ = ["Change", "Entries", "LayerState"]

Lazy = Tensor | Callable[[], Tensor]


@final
class _Field:
    """A tensor that is made when it is first read, then kept.

    Args:
        make: returns the tensor with room for some more numbers behind it.
        made: the tensor, where it is there already.
    """

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[[int], Tensor] | None, made: Tensor | None = None) -> None:
        self._make, self._made = make, made

    @classmethod
    def of(cls, value: Lazy) -> _Field:
        return cls(None, value) if isinstance(value, Tensor) else cls(lambda room: _with_room(value(), room))

    @property
    def made(self) -> Tensor | None:
        return self._made

    def read(self) -> Tensor:
        if self._made is None:
            assert self._make is not None
            self._made, self._make = self._make(0), None
        return self._made

    def with_room(self, room: int) -> Tensor:
        """Return a tensor of the caller's own, with room for `room` more numbers behind."""
        if self._made is None and self._make is not None:
            return self._make(room)
        return _with_room(self.read(), room)

    def join(self, ahead: int, other: _Field, behind: int) -> _Field:
        """Return the `ahead` numbers of this followed by the `behind` ones of another."""

        def make(room: int) -> Tensor:
            # What this is cut from may be as large as the dense weight: it is cut once, into where it stays.
            both, second = self.with_room(behind + room), other.read()
            both = both.to(torch.promote_types(both.dtype, second.dtype))
            both[ahead : ahead + behind] = second
            return both

        return _Field(make)

    def select(self, chosen: Tensor) -> _Field:
        return _Field(lambda room: _with_room(self.read()[chosen], room))


def _with_room(numbers: Tensor, room: int) -> Tensor:
    if not room:
        return numbers
    result = numbers.new_empty(len(numbers) + room)
    result[: len(numbers)] = numbers
    return result


@final
class Entries:
    """Some weights of one layer, as 1-D tensors of equal length.

    Each tensor may be given as a function that makes it. It is called when the tensor is first read, which must be
    within the update.

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

    __slots__ = ("_device", "_fields", "_generator", "_index_at", "_length")

    def __init__(
        self,
        index: Lazy,
        weight: Lazy,
        grad: Lazy | None = None,
        momentum: Lazy | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        given = {"index": index, "weight": weight, "grad": grad, "momentum": momentum}
        fields = {name: _Field.of(value) for name, value in given.items() if value is not None}
        first = next((value for value in given.values() if isinstance(value, Tensor)), None)
        first = fields["index"].read() if first is None else first
        self._set(fields, len(first), first.device, generator, None)
        for name in fields:
            self._check(name)

    @classmethod
    def absent(
        cls,
        units: Units,
        active: Tensor,
        zero: Tensor,
        grad: Callable[[], Tensor] | None = None,
        momentum: Callable[[], Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Entries:
        """Return all absent weights of a layer, unit after unit, units ascending.

        At low densities each tensor is nearly as large as the dense weight. So positions are made only if `index` is
        read, not for `index_at`.

        Args:
            units: the units of the layer.
            active: sorted numbers of the units that exist, int64. For units of one weight: their positions.
            zero: the weight of an absent position, shape ().
            grad: returns the gradient of every position of the dense weight, flat row-major; None where there is none.
            momentum: the same for the optimizer's momentum.
            generator: source of the random numbers in `noise`.

        Example:
            >>> dense = torch.tensor([1.0, 2.0, 3.0, 4.0])
            >>> entries = Entries.absent(Units((4,)), torch.tensor([1]), torch.zeros(()), momentum=lambda: dense)
            >>> entries.index, entries.momentum
            (tensor([0, 2, 3]), tensor([1., 3., 4.]))
        """
        size = units.size
        length = (units.count - len(active)) * size

        def cut(dense: Callable[[], Tensor]) -> _Field:
            return _Field(lambda room: leave_out(units.arrange(dense()), active, room, size))

        def index_at(at: Tensor) -> Tensor:
            if size == 1:
                return of_ranks(at, active)
            units_of_each = units.positions_of(of_ranks(at // size, active)).view(-1, size)
            return units_of_each.gather(1, (at % size)[:, None]).squeeze(1)

        fields = {
            "index": _Field(lambda room: _with_room(units.positions_of(absent(active, units.count)), room)),
            # one zero seen from everywhere needs no memory
            "weight": _Field(lambda room: _with_room(zero.expand(length), room)),
        }
        fields.update({name: cut(dense) for name, dense in (("grad", grad), ("momentum", momentum)) if dense})
        return cls._of(fields, length, active.device, generator, index_at)

    @classmethod
    def _of(
        cls,
        fields: dict[str, _Field],
        length: int,
        device: torch.device,
        generator: torch.Generator | None,
        index_at: Callable[[Tensor], Tensor] | None,
    ) -> Entries:
        entries = cls.__new__(cls)
        entries._set(fields, length, device, generator, index_at)
        return entries

    def _set(
        self,
        fields: dict[str, _Field],
        length: int,
        device: torch.device,
        generator: torch.Generator | None,
        index_at: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self._fields, self._length, self._device = fields, length, device
        self._generator, self._index_at = generator, index_at

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"Entries({len(self)} with {', '.join(self._fields)} on {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._device

    @property
    def index(self) -> Tensor:
        """Flat positions, int64, shape (entries,)."""
        return self._read("index")

    @property
    def weight(self) -> Tensor:
        """Values of the weights, shape (entries,)."""
        return self._read("weight")

    @property
    def grad(self) -> Tensor:
        """Gradients at the update, shape (entries,)."""
        if not self.holds_grad:
            raise ValueError('these entries hold no gradient: name "gradient" in the recipe\'s `needs`')
        return self._read("grad")

    @property
    def momentum(self) -> Tensor:
        """Momentum of the optimizer, shape (entries,)."""
        if not self.holds_momentum:
            raise ValueError('these entries hold no momentum: name "momentum" in the recipe\'s `needs`')
        return self._read("momentum")

    @property
    def holds_grad(self) -> bool:
        """Whether there is a gradient."""
        return "grad" in self._fields

    @property
    def holds_momentum(self) -> bool:
        """Whether there is momentum."""
        return "momentum" in self._fields

    def index_at(self, at: Tensor) -> Tensor:
        """Return the flat positions of the entries with the ascending numbers `at`, int64."""
        if self._index_at is not None and self._fields["index"].made is None:
            return self._index_at(at)
        return self.index[at]

    def index_of_units(self, size: int) -> Tensor:
        """Return the flat position of the first weight of each unit of so many entries, int64."""
        return self.index_at(torch.arange(0, len(self), size, device=self.device))

    def noise(self) -> Tensor:
        """Draw a fresh uniform number in [0, 1) for every entry, float64, shape (entries,)."""
        if self._generator is None:
            raise ValueError("these entries hold no generator, so they cannot be scored at random")
        device = self._generator.device
        drawn = torch.rand(len(self), generator=self._generator, dtype=torch.float64, device=device)
        return drawn.to(self.device)

    def with_generator(self, generator: torch.Generator) -> Entries:
        """Return the same entries with `generator` as the source of `noise`."""
        return self._of(self._fields, self._length, self._device, generator, self._index_at)

    def select(self, chosen: Tensor) -> Entries:
        """Return the entries that `chosen` names, by number (int64) or by a mask (bool), 1-D."""
        length = int(chosen.count_nonzero()) if chosen.dtype == torch.bool else len(chosen)
        fields = {name: field.select(chosen) for name, field in self._fields.items()}
        return self._of(fields, length, self._device, self._generator, None)

    def join(self, other: Entries) -> Entries:
        """Return these entries followed by `other`, whose positions are disjoint from these.

        What only one of the two holds (gradient, momentum) the result does not hold.
        """
        ahead, behind = len(self), len(other)
        fields = {
            name: field.join(ahead, other._fields[name], behind)
            for name, field in self._fields.items()
            if name in other._fields
        }

        def index_at(at: Tensor) -> Tensor:
            first = int((at < ahead).sum())
            return torch.cat((self.index_at(at[:first]), other.index_at(at[first:] - ahead)))

        return self._of(fields, ahead + behind, self._device, self._generator, index_at)

    def _read(self, name: str) -> Tensor:
        field = self._fields[name]
        if field.made is None:
            field.read()
            self._check(name)
        return field.read()

    def _check(self, name: str) -> None:
        made = self._fields[name].made
        if made is not None and made.shape != (self._length,):
            raise ValueError(
                f"{name} has shape {tuple(made.shape)}, but there are {self._length} entries: "
                "entries are 1-D tensors of equal length"
            )


@dataclass(frozen=True)
class LayerState:
    """One layer as the update sees it.

    Attributes:
        active: the weights that exist, unit after unit, units ascending.
        candidates: positions that may be grown, disjoint from `active`, in the same order.
        numel: number of elements of the dense weight.
        shape: shape of the dense weight.
        unit: outputs and inputs of a unit, which is dropped and grown whole. The weights of a unit follow one another.
        cost: multiply-adds that one weight takes in the forward pass of a sample; None where it is not known.
        absent: what may be grown once the update has dropped: the candidates and, unless the recipe says otherwise,
            what was just dropped. None before that.
    """

    active: Entries
    candidates: Entries
    numel: int
    shape: tuple[int, ...]
    unit: tuple[int, int] = (1, 1)
    cost: float | None = None
    absent: Entries | None = None

    @property
    def unit_size(self) -> int:
        """Weights in a unit."""
        return self.unit[0] * self.unit[1]


@dataclass(frozen=True)
class Change:
    """What an update does to one layer.

    Attributes:
        drop: flat positions that leave, ascending int64.
        grow: flat positions that join, ascending int64. A position in both was dropped and came back: its weight starts
            again at zero.
        returned: how many weights were dropped and came back, whether they are in both or, where the recipe keeps
            returning weights as they were, in neither.
    """

    drop: Tensor
    grow: Tensor
    returned: int = field(default=0, repr=False)
