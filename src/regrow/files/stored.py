"""What a file of a sparse model holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regrow.core.positions import compact
from regrow.core.units import Units
from regrow.storage import Storage

__all__ = ["Layer", "Stored"]


@dataclass(frozen=True)
class Layer:
    """One sparse weight.

    Attributes:
        values: the numbers of its active weights.
        index: their flat positions, sorted int64.
        units: the units in which its topology changes.
        storage: how it was stored.
    """

    values: Tensor
    index: Tensor
    units: Units
    storage: Storage

    def mask(self) -> Tensor:
        """Return where weights are active, bool in the dense shape."""
        mask = torch.zeros(self.units.numel, dtype=torch.bool)
        mask[self.index] = True
        return mask.view(self.units.shape)

    def dense(self) -> Tensor:
        """Return the dense weight."""
        dense = self.values.new_zeros(self.units.numel)
        dense[self.index] = self.values
        return dense.view(self.units.shape)

    def state(self, storage: Storage) -> tuple[Tensor, Tensor]:
        """Return numbers and positions as a storage has them in a state dict."""
        if storage is Storage.MASKED:
            return self.dense(), self.mask()
        return self.values, compact(self.index, self.units.numel)


@dataclass(frozen=True)
class Stored:
    """What a file holds.

    Attributes:
        layers: the sparse weights by name.
        shared: other names of what stands under an earlier name already.
        rest: everything else in the model's state.
        optimizer: the optimizer's part; None if it was not saved.
        topology: the state of what keeps the model sparse; None if it was not saved.
    """

    layers: dict[str, Layer]
    shared: dict[str, str]
    rest: dict[str, Any]
    optimizer: dict[str, Any] | None
    topology: dict[str, Any] | None

    @property
    def names(self) -> set[str]:
        """All names of the model's state, as in the ordinary model."""
        return {*self.layers, *self.rest, *self.shared}
