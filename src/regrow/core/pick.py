"""Picks: which of the absent weights of a layer grow, where that is not simply those of highest score."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regrow.core.entries import Entries, LayerState
from regrow.core.extreme import refuse_nan
from regrow.core.score import Score, unit_means

__all__ = ["Pick", "leading_of_outputs", "outputs_of", "per_output"]

Pick = Callable[[LayerState, Score, int], Tensor]
"""From a layer with what may be grown in it (`absent`), the score, and a number of units, to the ascending numbers of
the units of `absent` that grow, int64."""

# Remainders that differ by less are rounding: they tie.
_ROUNDING = 2.0**30


def per_output(layer: LayerState, score: Score, count: int) -> Tensor:
    """Share what a layer grows among its outputs by their mean score; in each output the highest scores grow.

    The mean is over all inputs, existing or not; of absent ones over those that are looked at. Shares become whole by
    largest remainder, and what a full output cannot take is shared among the rest in the same proportion. Ties fall to
    the lower output and the lower index. An output is a row of a linear layer or a filter of a convolution, or as many
    of them as a unit spans. This is `momentum_neuron` in the code of arXiv:1907.04840, which skips outputs that would
    grow fewer than ten.

    Args:
        layer: the layer, with `absent`.
        score: of each entry.
        count: units to grow, at most as many as there are absent.

    Raises:
        ValueError: if a score is NaN.

    Example:
        >>> momentum = torch.tensor([1.0, 1.0, 1.0, 9.0, 0.0, 6.0])
        >>> index = torch.arange(6)
        >>> parts = index[[0, 3]], index[[1, 2, 4, 5]]
        >>> active, absent = (Entries(at, at + 1.0, momentum=momentum[at]) for at in parts)
        >>> layer = LayerState(active, absent, numel=6, shape=(2, 3), absent=absent)
        >>> per_output(layer, lambda entries: entries.momentum, 2)
        tensor([2, 3])
    """
    absent = layer.absent
    assert absent is not None, "an update says what may be grown"
    scores = unit_means(score, absent, layer.unit_size)
    existing = unit_means(score, layer.active, layer.unit_size)
    refuse_nan(scores)
    refuse_nan(existing)
    outputs = layer.shape[0] // layer.unit[0]
    output, own = outputs_of(layer, absent), outputs_of(layer, layer.active)
    # what was just dropped stands behind the candidates, and among what existed
    inputs = torch.cat((output[: len(layer.candidates) // layer.unit_size], own))
    numbers = torch.cat((scores[: len(inputs) - len(own)], existing)).double()
    total = numbers.new_zeros(outputs).index_add_(0, inputs, numbers)
    mean = total / torch.bincount(inputs, minlength=outputs).clamp(min=1)
    room = torch.bincount(output, minlength=outputs)
    each = _split(count, mean, room)

    return leading_of_outputs(scores, absent.index_of_units(layer.unit_size), output, each)


def leading_of_outputs(scores: Tensor, index: Tensor, output: Tensor, each: Tensor) -> Tensor:
    """Return the ascending numbers of the units of highest score in each output, ties to the lower index.

    Args:
        scores: of units, shape (units,).
        index: flat position of the first weight of each unit, shape (units,).
        output: the output of each unit, shape (units,).
        each: how many units of each output are wanted, at most as many as it has, shape (outputs,).

    Example:
        >>> scores, each = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 1])
        >>> leading_of_outputs(scores, torch.arange(3), torch.tensor([0, 0, 1]), each)
        tensor([1, 2])
    """
    # sorted by output, in it by score, in that by index: every sort keeps the order of the ones before
    order = index.argsort()
    order = order[scores[order].argsort(stable=True, descending=True)]
    order = order[output[order].argsort(stable=True)]
    units = torch.bincount(output, minlength=len(each))
    first = units.cumsum(0) - units
    rank = torch.arange(len(order), device=order.device) - first[output[order]]
    return order[rank < each[output[order]]].sort().values


def outputs_of(layer: LayerState, entries: Entries) -> Tensor:
    """Return the output of each unit of a layer's entries, or of units that span several, the number of their group."""
    row = layer.numel // layer.shape[0] * layer.unit[0]
    return entries.index_of_units(layer.unit_size) // row


def _split(total: int, share: Tensor, room: Tensor) -> Tensor:
    """Split a number among many in proportion to shares, within the room, by largest remainder; int64.

    As `apportion` does for layers, but for thousands of names, and to rounding.

    Args:
        total: at most the sum of `room`.
        share: float64, not negative, shape (n,).
        room: int64, shape (n,).
    """
    quota, left = torch.zeros_like(share), float(total)
    while left > 1e-9 * total:
        weight = torch.where(quota < room, share, 0.0)
        if not weight.any():
            weight = (quota < room).double()
        quota = torch.minimum(quota + left * weight / weight.sum(), room.double())
        left = total - float(quota.sum())
    whole = (quota + 1 / _ROUNDING).floor().long()
    remainder = ((quota - whole) * _ROUNDING).round()
    missing = total - int(whole.sum())
    while missing > 0:
        order = torch.where(whole < room, remainder, -torch.inf).argsort(stable=True, descending=True)[:missing]
        order = order[whole[order] < room[order]]
        whole[order] += 1
        missing -= len(order)
    return whole
