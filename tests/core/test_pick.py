"""Growth that is shared among the outputs of a layer, beside the rule in plain loops."""

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from test_update import FRACTIONS, carry_out, networks

import reference
import regrow
from cases import method
from regrow.score import momentum, per_output


def grown_by_hand(layer, dropped, count):
    """Share units among outputs by their mean |momentum|; in each those of largest |momentum| grow."""
    rows = layer.shape[0] // layer.unit[0] if layer.shape else len(layer.weight)
    inputs = len(layer.weight) // rows

    def row(unit):
        return unit[0] // inputs

    def mean(unit):
        return math.fsum(abs(float(layer.momentum[i])) for i in unit) / len(unit)

    free = reference.growable(layer, dropped)
    kept = [unit for unit in layer.units() if layer.active[unit].all() and unit[0] not in dropped]
    share, room = [], []
    for number in range(rows):
        seen = [unit for unit in free + kept if row(unit) == number]
        values = [Fraction(mean(unit)) for unit in seen]
        share.append(sum(values) / len(values) if values else Fraction(0))
        room.append(sum(row(unit) == number for unit in free))
    if not any(share):
        share = [Fraction(1)] * rows
    each = reference.apportion(count // layer.size, share, room)
    grown = []
    for number in range(rows):
        own = [unit for unit in free if row(unit) == number]
        own.sort(key=lambda unit: (-mean(unit), unit[0]))
        grown += [i for unit in own[: each[number]] for i in unit]
    return sorted(grown)


@given(layers=networks(), rate=FRACTIONS)
def test_outputs_share_growth_by_their_mean_momentum(layers, rate):
    recipe = dataclasses.replace(
        method("set").recipe(),
        drop=regrow.score.magnitude,
        grow=momentum,
        pick=per_output,
        fraction=regrow.schedule.constant(rate),
    )
    for layer, (drop, grow) in zip(layers, carry_out(recipe, layers), strict=True):
        assert grow == grown_by_hand(layer, drop, len(drop))


@pytest.mark.parametrize(
    "pick", [lambda layer, score, count: torch.arange(count + 1), lambda layer, score, count: torch.zeros(count)]
)
def test_a_pick_of_another_number_is_an_error(pick):
    index = torch.arange(8)
    state = regrow.LayerState(
        regrow.Entries(index[:4], torch.ones(4)), regrow.Entries(index[4:], torch.zeros(4)), 8, (2, 4)
    )
    recipe = dataclasses.replace(method("set").recipe(), pick=pick, fraction=lambda step: 0.5, needs=())
    with pytest.raises(ValueError, match="for 2 units to grow in 'a': make it return as many"):
        regrow.update(recipe, {"a": state}, 1, torch.Generator())
