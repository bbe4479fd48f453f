"""Rewiring: what leaves a layer and what joins it, decided together, where one ranking does not say it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regrow.core.entries import LayerState
from regrow.core.extreme import extreme
from regrow.core.pick import leading_of_outputs, outputs_of
from regrow.core.positions import where
from regrow.core.score import Score, unit_means

__all__ = ["Moves", "Rewire", "constant_fan_in"]


@dataclass(frozen=True)
class Moves:
    """What an update asks of one layer.

    Attributes:
        drop: units that a ranking would drop.
        grow: units that a ranking would grow.
        step: optimizer steps taken.
        last: whether the layer is the last that takes part.
    """

    drop: int
    grow: int
    step: int = 0
    last: bool = False


Rewire = Callable[[LayerState, Score, Score, Moves], tuple[Tensor, Tensor]]
"""From a layer, the scores of `drop` and `grow`, and the moves that are asked for, to the ascending numbers of the
units of `active` that leave and of those of `candidates` that join, int64. There may be more or fewer of both, but
`grow - drop` more must join than leave. What would be dropped and come back stays, and is in neither."""


def constant_fan_in(ablate_below: float | None = None) -> Rewire:
    """Give every output of a layer as many weights, and take all of those that few of the best would go to (SRigL).

    Salient are the weights that there would be after drop and growth over the whole layer. An output that has fewer
    salient ones than the part `ablate_below` of the layer's weights for each output, rounded down, or none, is ablated:
    all its weights leave. It is not if the others could not hold the layer's weights, and none is in the last layer. A
    later update may bring it back. Each other output keeps its weights of highest `drop` score among those that a
    drop over the whole layer would leave, up to the fan-in, and is filled by the `grow` score.

    The number of weights of the layer stays exact: where it is no multiple of the number of outputs, those with the
    most salient weights have one more. So do others where an output has not as many positions to choose from. Ties
    fall to the lower output and the lower index. An output is a row of the dense weight, or as many as a unit spans.

    Args:
        ablate_below: the part, in [0, 1]; None ablates none but those for which there are too few weights.

    Raises:
        ValueError: if `ablate_below` is outside [0, 1]; in an update, if a score is NaN.

    Example:
        >>> from regrow.core.entries import Entries
        >>> from regrow.core.score import gradient, magnitude
        >>> index, grad = torch.arange(9), torch.tensor([1.0, 0.0, 0.0, 0.0, 3.0, 2.0, 0.0, 0.0, 4.0])
        >>> active, absent = torch.tensor([0, 1, 2, 6]), torch.tensor([3, 4, 5, 7, 8])
        >>> weight = torch.tensor([4.0, 2.0, 3.0, 1.0])
        >>> entries = Entries(active, weight, grad[active]), Entries(absent, weight.new_zeros(5), grad[absent])
        >>> layer = LayerState(*entries, numel=9, shape=(3, 3))
        >>> leave, join = constant_fan_in()(layer, magnitude, gradient, Moves(drop=1, grow=1))
        >>> active[leave], absent[join]
        (tensor([1, 6]), tensor([4, 8]))
    """
    if ablate_below is not None and not 0 <= ablate_below <= 1:
        raise ValueError(f"ablate_below is {ablate_below}: it is a part of the fan-in, in [0, 1], or None")

    def rewire(layer: LayerState, drop: Score, grow: Score, moves: Moves) -> tuple[Tensor, Tensor]:
        size, outputs = layer.unit_size, layer.shape[0] // layer.unit[0]
        scores, index = unit_means(drop, layer.active, size), layer.active.index_of_units(size)
        stays = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        stays[extreme(scores, moves.drop, index.__getitem__, largest=False)] = False
        kept, dropped = where(stays), where(~stays)
        of_kept = outputs_of(layer, layer.active)[kept]

        # what was just dropped stands behind the candidates
        absent = layer.candidates.join(layer.active.select((~stays).repeat_interleave(size)))
        wanted, place = unit_means(grow, absent, size), absent.index_of_units(size)
        of_absent, free = outputs_of(layer, absent), len(layer.candidates) // size
        best = extreme(wanted, moves.grow, place.__getitem__, largest=True)

        own = torch.bincount(of_kept, minlength=outputs)
        salient = own + torch.bincount(of_absent[best], minlength=outputs)
        room = own + torch.bincount(of_absent, minlength=outputs)
        least = None if moves.last else ablate_below
        fan_in = _fan_in(salient, room, len(scores) - moves.drop + moves.grow, least)

        held = leading_of_outputs(scores[kept], index[kept], of_kept, torch.minimum(own, fan_in))
        missing = fan_in - torch.bincount(of_kept[held], minlength=outputs)
        grown = leading_of_outputs(wanted, place, of_absent, missing)
        leaves = torch.ones_like(stays)
        leaves[kept[held]] = False
        leaves[dropped[grown[grown >= free] - free]] = False
        return where(leaves), grown[grown < free]

    return rewire


def _fan_in(salient: Tensor, room: Tensor, count: int, ablate_below: float | None) -> Tensor:
    """Return how many units each output is to have, int64, shape (outputs,).

    Args:
        salient: salient units of each output.
        room: units that each could have.
        count: units of all of them together.
        ablate_below: the part of the mean below which an output is ablated; None for none.
    """
    order = salient.argsort(stable=True, descending=True)
    if ablate_below is not None:
        least = max(1, int(ablate_below * (count // len(salient))))
        # as many outputs as it takes to hold them
        needed = int(torch.searchsorted(room[order].cumsum(0), count))
        least = min(least, int(salient[order[needed]])) if count else 0
        room = torch.where(salient >= least, room, 0)
    low, high = 0, int(room.max())
    while low < high:  # the highest level that does not give more than there are
        middle = (low + high + 1) // 2
        low, high = (middle, high) if int(room.clamp(max=middle).sum()) <= count else (low, middle - 1)
    fan_in = room.clamp(max=low)
    more = order[room[order] > low][: count - int(fan_in.sum())]
    fan_in[more] += 1
    return fan_in
