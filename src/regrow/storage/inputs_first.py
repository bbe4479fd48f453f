"""Sparse storage of a weight that the ordinary layer keeps as (inputs, outputs), and the sparse layer transposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from regrow.core.entries import Change
from regrow.core.transposed import transposed
from regrow.core.units import Units
from regrow.nn.sparse_layer import SparseLayer
from regrow.storage.sparse import SparseWeight
from regrow.storage.weight import Storage

__all__ = ["InputsFirstWeight"]


class InputsFirstWeight:
    """A handle on the weight of one sparse layer, with positions in the weight of the ordinary layer.

    It stands around the handle that knows the layer's own positions, those of the transpose, and translates. Numbers in
    the parameter's shape stay in the layer's order.

    Args:
        name: full name of the weight in the unsparsified model.
        module: the layer.
    """

    def __init__(self, name: str, module: SparseLayer) -> None:
        self._own = SparseWeight(name, module)

    @property
    def name(self) -> str:
        """Full name of the weight in the unsparsified model."""
        return self._own.name

    @property
    def module(self) -> SparseLayer:
        """The layer."""
        return self._own.module

    @property
    def storage(self) -> Storage:
        """How it is stored."""
        return self._own.storage

    @property
    def holds_absent(self) -> bool:
        """False: absent weights are covered only while growth gathers."""
        return self._own.holds_absent

    @property
    def weight(self) -> nn.Parameter:
        """The values, in the order of the layer's own positions."""
        return self._own.weight

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the dense weight, (inputs, outputs)."""
        outputs, inputs = self._own.shape
        return inputs, outputs

    @property
    def numel(self) -> int:
        """Number of elements of the dense weight."""
        return self._own.numel

    @property
    def units(self) -> Units:
        """The units in which its topology changes."""
        outputs, inputs = self.module.unit
        return Units(self.shape, (inputs, outputs))

    @property
    def bytes(self) -> int:
        """Bytes of values, positions and the index structures that the kernels read."""
        return self._own.bytes

    @property
    def state_keys(self) -> tuple[str, str]:
        """Keys of values and index in a state dict."""
        return self._own.state_keys

    def dense(self) -> Tensor:
        """Return the weight as a new dense tensor, zero where it is absent."""
        return self._own.dense()

    def nonzeros(self) -> int:
        """Return how many weights are active, zero-valued ones included."""
        return self._own.nonzeros()

    def nonzero_absent(self) -> int:
        """Return 0: absent weights take no part in the layer's output."""
        return self._own.nonzero_absent()

    def mask(self) -> Tensor:
        """Return where weights are active: a new bool tensor in the dense shape."""
        return self._own.mask().t().contiguous()

    def index(self) -> Tensor:
        """Return the flat positions of the active weights, sorted int64."""
        return self._outside(self._own.index()).sort().values

    def index_version(self) -> object:
        """Return the index tensor itself: another stands there when a state was loaded."""
        return self._own.index_version()

    def parameter_version(self) -> int:
        """Return how often the parameter has taken other numbers."""
        return self._own.parameter_version()

    def factor(self) -> None:
        """Return nothing: absent weights take no part in the layer's output."""
        return

    def existing(self, tensor: Tensor) -> Tensor:
        """Return the numbers of a tensor in the parameter's shape in the order of `index`."""
        return self._own.existing(tensor)[self._outside(self._own.index()).argsort()]

    def everywhere(self, tensor: Tensor) -> Tensor:
        """Return the numbers of every position, flat; only while all are covered."""
        return self._own.everywhere(tensor).view(self._own.shape).t().reshape(-1)

    def at(self, tensor: Tensor, positions: Tensor) -> Tensor:
        """Return the numbers of a tensor in the parameter's shape at flat positions, zero at those not covered."""
        return self._own.at(tensor, self._inside(positions))

    def put(self, tensor: Tensor, positions: Tensor, numbers: Tensor) -> None:
        """Set the numbers of a tensor in the parameter's shape at flat positions that it covers."""
        self._own.put(tensor, self._inside(positions), numbers)

    def cover(self, positions: Tensor | None, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Let the parameter cover absent positions too, at zero; return the state with zeros there."""
        return self._own.cover(None if positions is None else self._inside(positions), state)

    def uncover(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Let the parameter cover active weights alone; return the state in its new shape."""
        return self._own.uncover(state)

    def clear_absent(self) -> None:
        """Set the parameter to zero at the absent positions that it covers."""
        self._own.clear_absent()

    def apply(self, change: Change, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Carry out a change: values, positions, state and gradient move."""
        drop, grow = (self._inside(positions).sort().values for positions in (change.drop, change.grow))
        return self._own.apply(replace(change, drop=drop, grow=grow), state)

    def to_dense(self) -> nn.Module:
        """Return the ordinary layer that computes the same, to stand in place of the sparse one."""
        return self._own.to_dense()

    def _inside(self, positions: Tensor) -> Tensor:
        """Return positions in the ordinary layer's weight as the layer's own."""
        return transposed(positions, self.shape)

    def _outside(self, positions: Tensor) -> Tensor:
        """Return the layer's own positions as those in the ordinary layer's weight."""
        outputs, inputs = self._own.shape
        return transposed(positions, (outputs, inputs))
