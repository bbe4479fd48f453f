"""Sparse storage: the parameter is the vector of the active weights.

Values, gradients and optimizer state have one number for each active weight; the flat positions are a buffer beside
them. When the topology changes, all of them move with their weights. While growth gathers what it needs of absent
weights, the parameter covers those too, and so do gradient and state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regrow.core.entries import Change
from regrow.core.positions import compact, find, lookup
from regrow.core.units import Units
from regrow.nn.sparse_layer import SparseLayer, exclusive
from regrow.ops.layout import allocate_flat
from regrow.storage.weight import Storage

__all__ = ["SparseWeight"]


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
        return self.module.shape

    @property
    def numel(self) -> int:
        """Number of elements of the dense weight."""
        return math.prod(self.shape)

    @property
    def units(self) -> Units:
        """The units in which its topology changes."""
        return Units(self.shape, self.module.unit)

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
        return exists.view(self.shape)

    def index(self) -> Tensor:
        """Return the flat positions of the active weights, sorted int64."""
        return self.module.index.long()

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
        covered = self.module.covered
        return tensor if covered is None else tensor[covered.active]

    def everywhere(self, tensor: Tensor) -> Tensor:
        """Return the numbers of every position, flat; only while all are covered."""
        assert self.module.covered is not None
        assert self.module.covered.positions is None
        return tensor

    def at(self, tensor: Tensor, positions: Tensor) -> Tensor:
        """Return the numbers of a tensor in the parameter's shape at flat positions, zero at those not covered."""
        covered = self.module.covered
        if covered is None:
            return lookup(positions, self.index(), tensor)
        if covered.positions is None:
            return tensor[positions]
        return lookup(positions, covered.positions.long(), tensor)

    def put(self, tensor: Tensor, positions: Tensor, numbers: Tensor) -> None:
        """Set the numbers of a tensor in the parameter's shape at flat positions that it covers."""
        covered = self.module.covered
        if covered is not None and covered.positions is None:
            tensor[positions] = numbers
        else:
            known = self.index() if covered is None or covered.positions is None else covered.positions.long()
            tensor[find(positions, known)[0]] = numbers

    @torch.no_grad()
    def cover(self, positions: Tensor | None, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Let the parameter cover absent positions too, at zero; return the state with zeros there."""
        before, gradient = self.existing(self.weight.detach()), self._gradient
        state = {key: self.existing(tensor) for key, tensor in state.items()}
        if positions is not None:
            positions = torch.cat((self.index(), positions)).sort().values
        covered = self.module.covering(positions)
        size = self.numel if positions is None else len(positions)

        def spread(numbers: Tensor, into: Tensor | None = None) -> Tensor:
            spread = numbers.new_empty(size) if into is None else into
            spread.zero_()[covered.active] = numbers
            return spread

        self.module.hold(spread(before), covered)
        # The gradient is gone before there are activations again.
        self._set_gradient(gradient, lambda numbers: spread(numbers, allocate_flat(numbers, size)))
        return {key: spread(tensor) for key, tensor in state.items()}

    @torch.no_grad()
    def uncover(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Let the parameter cover active weights alone; return the state in its new shape."""
        if self.module.covered is None:
            return dict(state)
        state = {key: self.existing(tensor) for key, tensor in state.items()}
        gradient = self._gradient
        self.module.hold(self.existing(self.weight.detach()), None)
        self._set_gradient(gradient, lambda numbers: numbers)
        return state

    @torch.no_grad()
    def clear_absent(self) -> None:
        """Set the parameter to zero at the absent positions that it covers."""
        covered = self.module.covered
        if covered is not None:
            with exclusive:
                values = self.weight
                kept = values[covered.active]
                values.zero_()
                values[covered.active] = kept

    @torch.no_grad()
    def apply(self, change: Change, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Carry out a change: values, positions, state and gradient move."""
        before, values = self.index(), self.weight.detach()
        stays = torch.ones(len(before), dtype=torch.bool, device=before.device)
        stays[find(change.drop, before)[0]] = False
        # Sorting says where each number comes from: from what stays, or behind that from what joins.
        index, source = torch.cat((before[stays], change.grow)).sort()
        if self.module.covered is not None:
            with exclusive:
                self.put(values, change.drop, values.new_zeros(()))
                self.module.replace_active(compact(index, self.numel))
            return dict(state)
        fresh = len(change.grow)

        def move(tensor: Tensor) -> Tensor:
            return torch.cat((tensor[stays], tensor.new_zeros(fresh)))[source]

        # A weight in both was dropped and came back: its numbers of state stay, as its position does.
        returned = find(change.grow, before)[1]
        after = {key: move(tensor) for key, tensor in state.items()}
        if bool(returned.any()):
            back = change.grow[returned]
            target = find(back, index)[0]
            for key, tensor in state.items():
                after[key][target] = lookup(back, before, tensor)
        gradient = self._gradient
        self.module.replace(compact(index, self.numel), move(values))
        self._set_gradient(gradient, move)
        return after

    @property
    def _gradient(self) -> Tensor | None:
        """The gradient of the active weights; None where the parameter has none."""
        gradient = self.weight.grad
        return None if gradient is None else self.existing(gradient)

    def _set_gradient(self, gradient: Tensor | None, move: Callable[[Tensor], Tensor]) -> None:
        """Let the parameter have a gradient again, which its new shape took away, moved to its new positions.

        A gradient that is there and zero makes an optimizer step: momentum and weight decay go on.
        """
        self.weight.grad = None if gradient is None else move(gradient)

    def to_dense(self) -> nn.Module:
        """Return the ordinary layer that computes the same, to stand in place of the sparse one."""
        return self.module.to_dense()
