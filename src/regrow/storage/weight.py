"""What every storage offers of a sparse weight."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Protocol

from torch import Tensor, nn

from regrow.core.entries import Change
from regrow.core.units import Units
from regrow.storage.aside import Aside

__all__ = ["Storage", "Weight"]


class Storage(str, Enum):
    """How a sparse weight is held in memory."""

    MASKED = "masked"
    SPARSE = "sparse"

    def __str__(self) -> str:
        return self.value

    @property
    def backend(self) -> str:
        """What `regrow.sparsify` calls it: the backend whose kernels compute with it, or "masked"."""
        return "cpu" if self is Storage.SPARSE else "masked"


class Weight(Protocol):
    """A handle on one sparse weight of a model; the tensors themselves belong to its module.

    Gradients and optimizer state have the parameter's shape. That shape is the storage's business: `at`, `put` and
    `apply` translate to flat positions of the dense weight, which is all that an update knows.

    The parameter *covers* the positions that it has a number for: every position in masked storage, the active ones in
    sparse storage. While growth gathers what it needs of absent weights, sparse storage covers those too. Their
    numbers in the parameter are zero; their gradient and optimizer state are what those of a dense weight would be.
    """

    @property
    def name(self) -> str:
        """Full name of the weight in the unsparsified model."""

    @property
    def module(self) -> nn.Module:
        """The module that owns it."""

    @property
    def storage(self) -> Storage:
        """How it is stored."""

    @property
    def holds_absent(self) -> bool:
        """Whether the parameter covers every position, always."""

    @property
    def weight(self) -> nn.Parameter:
        """The parameter that the optimizer trains."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""

    @property
    def numel(self) -> int:
        """Number of elements of the dense weight."""

    @property
    def units(self) -> Units:
        """The units in which its topology changes."""

    @property
    def bytes(self) -> int:
        """Bytes that the weight takes in memory, with the record of where it exists."""

    @property
    def state_keys(self) -> tuple[str, str]:
        """Keys of its numbers and of its positions in the state dict of a model that holds it under its name."""

    def dense(self) -> Tensor:
        """Return the weight as a new dense tensor, zero where it is absent."""

    def nonzeros(self) -> int:
        """Return how many weights are active, zero-valued ones included."""

    def nonzero_absent(self) -> int:
        """Return how many absent weights take part with a value that is not zero; waits for the device."""

    def mask(self) -> Tensor:
        """Return where weights are active: a new bool tensor in the dense shape."""

    def index(self) -> Tensor:
        """Return the flat positions of the active weights, sorted int64."""

    def index_version(self) -> object:
        """Return what differs from what was returned before if the index was replaced by other means than `apply`."""

    def parameter_version(self) -> int:
        """Return a number that differs after the parameter took other numbers, of any count, for other positions."""

    def factor(self) -> Tensor | None:
        """Return what the parameter is multiplied by to be zero where it is absent; None where that does nothing."""

    def existing(self, tensor: Tensor) -> Tensor:
        """Return the numbers of a tensor in the parameter's shape that belong to active weights, as in `index`."""

    def everywhere(self, tensor: Tensor) -> Tensor:
        """Return the numbers of every position, flat, of a tensor in the parameter's shape; only if all are covered."""

    def at(self, tensor: Tensor, positions: Tensor) -> Tensor:
        """Return the numbers of a tensor in the parameter's shape that belong to flat positions.

        Zero for positions that the parameter does not cover.

        Args:
            tensor: the parameter, its gradient, or a tensor of its optimizer state.
            positions: flat positions in the dense weight, int64, shape (n,).
        """

    def put(self, tensor: Tensor, positions: Tensor, numbers: Tensor) -> None:
        """Set the numbers of a tensor in the parameter's shape at flat positions that the parameter covers."""

    def cover(self, positions: Tensor | None, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Let the parameter cover absent positions too, at zero.

        Args:
            positions: absent flat positions, sorted int64; None for all.
            state: tensors of optimizer state in the parameter's shape.

        Returns:
            The tensors of optimizer state with zeros at absent positions.
        """

    def uncover(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Let the parameter cover no more than its storage does by itself; return the state in its new shape."""

    def clear_absent(self) -> None:
        """Set the parameter to zero at the absent positions that it was made to cover."""

    def leave_active(self, state: Mapping[str, Tensor]) -> Aside | None:
        """Let the parameter and its gradient hold active weights alone, for a step of the optimizer.

        Args:
            state: tensors of optimizer state in the parameter's shape.

        Returns:
            What is put aside; None where the parameter was not made to cover absent weights.
        """

    def apply(self, change: Change, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Carry out a change: the weights at `change.drop` leave, those at `change.grow` join at zero.

        Args:
            change: positions that leave and join.
            state: tensors of optimizer state in the parameter's shape; they may be changed in place.

        Returns:
            The state after the change: numbers stay with their positions, and are zero where none was known.
        """

    def to_dense(self) -> nn.Module:
        """Return the module with an ordinary weight, zero where it was absent: the own one, or one in its place."""
