"""Sparse storage: the parameter is the vector of the weights that exist.

Values, gradients and optimizer state have one number for each weight that exists; the flat positions are a buffer
beside them. When the topology changes, all of them move with their weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regrow.core.entries import Change
from regrow.core.positions import compact, find, lookup
from regrow.nn.sparse_layer import SparseLayer


@dataclass(frozen=True)
class SparseWeight:
    """A handle on the weight of one sparse layer.

    Attributes:
        name: full name of the weight in the unsparsified model.
        module: the layer.
    """

    name: str
    module: SparseLayer

    @property
    def storage(self) -> str:
        """How it is stored, in a word."""
        return "sparse"

    @property
    def holds_absent(self) -> bool:
        """False: only weights that exist have numbers."""
        return False

    @property
    def weight(self) -> nn.Parameter:
        """The values, shape (nonzeros,)."""
        return self.module.values

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""
        return self.module.shape

    @property
    def numel(self) -> int:
        """Number of elements of the dense weight."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of values, positions and the index structures that the kernels read."""
        return self.weight.nbytes + self.module.pattern.nbytes

    def nonzeros(self) -> int:
        """Return how many weights exist, zero-valued ones included."""
        return self.weight.numel()

    def positions(self) -> Tensor:
        """Return where weights exist: a new bool tensor in the dense shape."""
        exists = torch.zeros(self.numel, dtype=torch.bool, device=self.module.index.device)
        exists[self.module.index.long()] = True
        return exists.view(self.shape)

    def index(self) -> Tensor:
        """Return the flat positions of the weights that exist, sorted int64."""
        return self.module.index.long()

    def existing(self, tensor: Tensor) -> Tensor:
        """Return a (nonzeros,) tensor as it is: it is in the order of `index`."""
        return tensor

    def at(self, tensor: Tensor, positions: Tensor) -> Tensor:
        """Return the numbers of a (nonzeros,) tensor at flat positions, zero at absent ones."""
        return lookup(positions, self.index(), tensor)

    @torch.no_grad()
    def apply(self, change: Change, numbers: Mapping[str, Tensor], joining: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Carry out a change: values, positions and state move, the gradient becomes None."""
        values = self.weight.detach()
        # The values move as the state does; an empty name is none of an optimizer's.
        index, after = self._changed(
            change, {**numbers, "": values}, {**joining, "": values.new_zeros(len(change.grow))}
        )
        self.module.replace(index, after.pop(""))
        return after

    def _changed(
        self, change: Change, numbers: Mapping[str, Tensor], joining: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return positions and numbers after a change; what is made on the way is freed before anything else is."""
        before = self.index()
        stays = torch.ones(len(before), dtype=torch.bool, device=before.device)
        stays[find(change.drop, before)[0]] = False
        # Sorting says where each number comes from: from what stays, or behind that from what joins.
        index, source = torch.cat((before[stays], change.grow)).sort()
        after = {key: torch.cat((tensor[stays], joining[key]))[source] for key, tensor in numbers.items()}
        return compact(index, self.numel), after
