"""What every storage offers of a sparse weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from regrow.core.entries import Change


class Weight(Protocol):
    """A handle on one sparse weight of a model; the tensors themselves belong to its module.

    The parameter's own shape is the storage's business, and so is that of gradients and optimizer state, which share
    it: `at` and `apply` translate to flat positions of the dense weight, which is all that an update knows.
    """

    @property
    def name(self) -> str:
        """Full name of the weight in the unsparsified model."""

    @property
    def module(self) -> nn.Module:
        """The module that owns it."""

    @property
    def storage(self) -> str:
        """How it is stored, in a word."""

    @property
    def holds_absent(self) -> bool:
        """Whether the parameter, its gradient and its optimizer state have a number for every absent weight too."""

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
    def bytes(self) -> int:
        """Bytes that the weight takes in memory, with the record of where it exists."""

    def nonzeros(self) -> int:
        """Return how many weights exist, zero-valued ones included."""

    def positions(self) -> Tensor:
        """Return where weights exist: a new bool tensor in the dense shape."""

    def index(self) -> Tensor:
        """Return the flat positions of the weights that exist, sorted int64."""

    def existing(self, tensor: Tensor) -> Tensor:
        """Return the numbers of a tensor in the parameter's shape that belong to weights that exist, as in `index`."""

    def at(self, tensor: Tensor, positions: Tensor) -> Tensor:
        """Return the numbers of a tensor in the parameter's shape that belong to flat positions.

        Zero for absent weights that the storage has no number for.

        Args:
            tensor: the parameter, its gradient, or a tensor of its optimizer state.
            positions: flat positions in the dense weight, int64, shape (n,).
        """

    def apply(self, change: Change, numbers: Mapping[str, Tensor], joining: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Carry out a change: the weights at `change.drop` leave, those at `change.grow` join at zero.

        Args:
            change: positions that leave and join.
            numbers: tensors of optimizer state in the parameter's shape; they may be changed in place.
            joining: for each of those the numbers at `change.grow`.

        Returns:
            The tensors as they are after the change: numbers stay with their weights.
        """
