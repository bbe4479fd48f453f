"""The numbers of a sparse layer at the layer's own positions: to read them, to cover more, and to move them.

Numbers are the layer's parameter, its gradient, or a tensor of its optimizer state: all have a number for each position
that the parameter covers, in the order of these positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from regrow.core.positions import compact, find, lookup
from regrow.nn.sparse_layer import SparseLayer, exclusive
from regrow.ops.layout import allocate_flat

__all__ = ["at", "change", "clear_absent", "cover", "existing", "put", "uncover"]


def existing(layer: SparseLayer, numbers: Tensor) -> Tensor:
    """Return the numbers of active weights, in the order of the layer's index."""
    return numbers if layer.covered is None else numbers.index_select(0, layer.covered.active)


def at(layer: SparseLayer, numbers: Tensor, positions: Tensor) -> Tensor:
    """Return the numbers at flat positions, zero at those that are not covered."""
    covered = layer.covered
    if covered is None:
        return lookup(positions, layer.index.long(), numbers)
    if covered.positions is None:
        return numbers[positions]
    return lookup(positions, covered.positions.long(), numbers)


def put(layer: SparseLayer, numbers: Tensor, positions: Tensor, others: Tensor) -> None:
    """Set the numbers at flat positions that are covered."""
    covered = layer.covered
    if covered is not None and covered.positions is None:
        numbers[positions] = others
    else:
        known = layer.index if covered is None or covered.positions is None else covered.positions
        numbers[find(positions, known.long())[0]] = others


@torch.no_grad()
def cover(layer: SparseLayer, positions: Tensor | None, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let the parameter cover absent positions too, all for None, at zero; return the state with zeros there."""
    before, gradient = existing(layer, layer.values.detach()), _gradient(layer)
    state = {key: existing(layer, tensor) for key, tensor in state.items()}
    if positions is not None:
        positions = torch.cat((layer.index.long(), positions)).sort().values
    covered = layer.covering(positions)
    size = math.prod(layer.shape) if positions is None else len(positions)

    def spread(numbers: Tensor, into: Tensor | None = None) -> Tensor:
        spread = numbers.new_empty(size) if into is None else into
        spread.zero_()[covered.active] = numbers
        return spread

    layer.hold(spread(before), covered)
    # The gradient is gone before there are activations again.
    _set_gradient(layer, gradient, lambda numbers: spread(numbers, allocate_flat(numbers, size)))
    return {key: spread(tensor) for key, tensor in state.items()}


@torch.no_grad()
def uncover(layer: SparseLayer, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let the parameter cover active weights alone; return the state in its new shape."""
    if layer.covered is None:
        return dict(state)
    state = {key: existing(layer, tensor) for key, tensor in state.items()}
    gradient = _gradient(layer)
    layer.hold(existing(layer, layer.values.detach()), None)
    _set_gradient(layer, gradient, lambda numbers: numbers)
    return state


@torch.no_grad()
def clear_absent(layer: SparseLayer) -> None:
    """Set the parameter to zero at the absent positions that it covers."""
    covered = layer.covered
    if covered is not None:
        with exclusive:
            kept = layer.values[covered.active]
            layer.values.zero_()
            layer.values[covered.active] = kept


@torch.no_grad()
def change(layer: SparseLayer, drop: Tensor, grow: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Let the weights at some flat positions leave and others join, at zero; return the state after that.

    Values, state and gradient stay with their positions.
    """
    before, values = layer.index.long(), layer.values.detach()
    stays = torch.ones(len(before), dtype=torch.bool, device=before.device)
    stays[find(drop, before)[0]] = False
    # Sorting says where each number comes from: from what stays, or behind that from what joins.
    index, source = torch.cat((before[stays], grow)).sort()
    positions = compact(index, math.prod(layer.shape))
    if layer.covered is not None:
        with exclusive:
            put(layer, values, drop, values.new_zeros(()))
            layer.replace_active(positions)
        return dict(state)

    def move(tensor: Tensor) -> Tensor:
        return torch.cat((tensor[stays], tensor.new_zeros(len(grow))))[source]

    # A weight in both was dropped and came back: its numbers of state stay, as its position does.
    returned = find(grow, before)[1]
    after = {key: move(tensor) for key, tensor in state.items()}
    if bool(returned.any()):
        back = grow[returned]
        target = find(back, index)[0]
        for key, tensor in state.items():
            after[key][target] = lookup(back, before, tensor)
    gradient = _gradient(layer)
    layer.replace(positions, move(values))
    _set_gradient(layer, gradient, move)
    return after


def _gradient(layer: SparseLayer) -> Tensor | None:
    """Return the gradient of the active weights; None where the parameter has none."""
    return None if layer.values.grad is None else existing(layer, layer.values.grad)


def _set_gradient(layer: SparseLayer, gradient: Tensor | None, move: Callable[[Tensor], Tensor]) -> None:
    """Let the parameter have a gradient again, which its new shape took away, moved to its new positions.

    A gradient that is there and zero makes an optimizer step: momentum and weight decay go on.
    """
    layer.values.grad = None if gradient is None else move(gradient)
