"""Sparse storage: the parameter is the vector of the active weights.

Values, gradients and optimizer state have one number for each active weight; the flat positions are a buffer beside
them. When the topology changes, all of them move with their weights. While growth gathers what it needs of absent
weights, the parameter covers those too, and so do gradient and state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regrow.core.entries import Change
from regrow.core.transposed import transposed
from regrow.core.units import Units
from regrow.nn.sparse_layer import SparseLayer
from regrow.storage import values
from regrow.storage.aside import Aside
from regrow.storage.weight import Storage

__all__ = ["SparseWeight"]


@dataclass(frozen=True)
class SparseWeight:
    """A handle on the weight of one sparse layer, with positions in the weight of the ordinary layer.

    Where that has its inputs first, the sparse layer's own positions are those of the transpose, and are translated.
    Numbers in the parameter's shape stay in the layer's order.

    Attributes:
        name: full name of the weight in the unsparsified model.
        module: the layer.
    """

    name: str
    module: SparseLayer

    @property
    def storage(self) -> Storage:
        """How it is stored."""
        return Storage.SPARSE

    @property
    def holds_absent(self) -> bool:
        """False: absent weights are covered only while growth gathers."""
        return False

    @property
    def weight(self) -> nn.Parameter:
        """The values, shape (covered positions,): those of active weights unless more are covered."""
        return self.module.values

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""
        return self.module.shape[::-1] if self.module.inputs_first else self.module.shape

    @property
    def numel(self) -> int:
        """Number of elements of the dense weight."""
        return math.prod(self.shape)

    @property
    def units(self) -> Units:
        """The units in which its topology changes."""
        outputs, inputs = self.module.unit
        return Units(self.shape, (inputs, outputs) if self.module.inputs_first else (outputs, inputs))

    @property
    def bytes(self) -> int:
        """Bytes of values, positions and the index structures that the kernels read."""
        return self.weight.nbytes + self.module.pattern.nbytes

    @property
    def state_keys(self) -> tuple[str, str]:
        """Keys of values and index in a state dict."""
        prefix = self.name.removesuffix("weight")
        return prefix + "values", prefix + "index"

    def dense(self) -> Tensor:
        """Return the weight as a new dense tensor, zero where it is absent."""
        return self.module.dense_weight()

    def nonzeros(self) -> int:
        """Return how many weights are active, zero-valued ones included."""
        return len(self.module.index)

    def nonzero_absent(self) -> int:
        """Return 0: absent weights take no part in the layer's output."""
        return 0

    def mask(self) -> Tensor:
        """Return where weights are active: a new bool tensor in the dense shape."""
        exists = torch.zeros(self.numel, dtype=torch.bool, device=self.module.index.device)
        exists[self.module.index.long()] = True
        return self.module.turned(exists.view(self.module.shape)).contiguous()

    def index(self) -> Tensor:
        """Return the flat positions of the active weights, sorted int64."""
        own = self.module.index.long()
        return self._outside(own).sort().values if self.module.inputs_first else own

    def index_version(self) -> object:
        """Return the index tensor itself: another stands there when a state was loaded."""
        return self.module.index

    def parameter_version(self) -> int:
        """Return how often the parameter has taken other numbers."""
        return self.module.times_rebound

    def factor(self) -> None:
        """Return nothing: absent weights take no part in the layer's output."""
        return

    def existing(self, tensor: Tensor) -> Tensor:
        """Return the numbers of a tensor in the parameter's shape in the order of `index`."""
        own = values.existing(self.module, tensor)
        return own[self._outside(self.module.index.long()).argsort()] if self.module.inputs_first else own

    def everywhere(self, tensor: Tensor) -> Tensor:
        """Return the numbers of every position, flat; only while all are covered."""
        assert self.module.covered is not None
        assert self.module.covered.positions is None
        return self.module.turned(tensor.view(self.module.shape)).reshape(-1)

    def at(self, tensor: Tensor, positions: Tensor) -> Tensor:
        """Return the numbers of a tensor in the parameter's shape at flat positions, zero at those not covered."""
        return values.at(self.module, tensor, self._inside(positions))

    def put(self, tensor: Tensor, positions: Tensor, numbers: Tensor) -> None:
        """Set the numbers of a tensor in the parameter's shape at flat positions that it covers."""
        values.put(self.module, tensor, self._inside(positions), numbers)

    def cover(self, positions: Tensor | None, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Let the parameter cover absent positions too, at zero; return the state with zeros there."""
        return values.cover(self.module, None if positions is None else self._inside(positions), state)

    def uncover(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Let the parameter cover active weights alone; return the state in its new shape."""
        return values.uncover(self.module, state)

    def clear_absent(self) -> None:
        """Set the parameter to zero at the absent positions that it covers."""
        values.clear_absent(self.module)

    def leave_active(self, state: Mapping[str, Tensor]) -> Aside | None:
        """Let the parameter and its gradient hold active weights alone, for a step of the optimizer."""
        return None if self.module.covered is None else Aside(self.module, state)

    def apply(self, change: Change, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Carry out a change: values, positions, state and gradient move."""
        return values.change(self.module, self._inside(change.drop), self._inside(change.grow), state)

    def to_dense(self) -> nn.Module:
        """Return the ordinary layer that computes the same, to stand in place of the sparse one."""
        return self.module.to_dense()

    def _inside(self, positions: Tensor) -> Tensor:
        """Return positions in the ordinary layer's weight as the layer's own."""
        if not self.module.inputs_first:
            return positions
        inputs, outputs = self.shape
        return transposed(positions, (inputs, outputs))

    def _outside(self, positions: Tensor) -> Tensor:
        """Return the own positions of a layer with its inputs first as those in the ordinary layer's weight."""
        outputs, inputs = self.module.shape
        return transposed(positions, (outputs, inputs))
