"""One update of each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from reference.counts import apportion, authors_share, nearest_below
from reference.layers import (
    Decision,
    Layer,
    Noise,
    choose,
    drop_by_sign,
    drop_count,
    drop_smallest,
    grow_largest,
    growable,
    rows_of,
    surplus_of,
    without_returning,
)


def sparse_momentum(layers: Sequence[Layer], rate: float, noise: Noise, target: int | None = None) -> list[Decision]:
    """Drop by magnitude, pool, share by mean |momentum| over active weights before the drop, grow by |momentum|.

    With the rules of the authors' code: full layers of large share are spared, a layer with a share gets at least one,
    none is filled, and what returns stays as it was.
    """
    share = []
    for layer in layers:
        values = [abs(float(m)) for m in layer.momentum[layer.active]]
        share.append(Fraction(math.fsum(values) / len(values)) if values else Fraction(0))
    dropped = []
    for layer, own in zip(layers, share, strict=True):
        absent = 1 - int(layer.active.sum()) / len(layer.active)
        spared = absent < 0.2 and own * len(layers) > sum(share)
        dropped.append(drop_smallest(layer, min(absent, rate) if spared else rate))
    room = [len(growable(layer, drop)) * layer.size for layer, drop in zip(layers, dropped, strict=True)]
    empty = [not layer.active.any() for layer in layers]
    counts = authors_share(sum(map(len, dropped)), share, empty, room, [layer.size for layer in layers])
    return [
        without_returning(drop, grow_largest(layer, drop, layer.momentum, count))
        for layer, drop, count in zip(layers, dropped, counts, strict=True)
    ]


def set_(layers: Sequence[Layer], rate: float, noise: Noise, target: int | None = None) -> list[Decision]:
    """Drop by magnitude, each sign apart; grow as many in the same layer where the noise is largest."""
    decisions = []
    for layer in layers:
        drop = drop_by_sign(layer, rate)
        in_draw_order = [i for unit in growable(layer, drop) for i in unit]
        drawn = np.zeros(len(layer.weight))
        drawn[in_draw_order] = noise(len(in_draw_order))
        decisions.append((drop, grow_largest(layer, drop, drawn, len(drop))))
    return decisions


def rigl(layers: Sequence[Layer], rate: float, noise: Noise, target: int | None = None) -> list[Decision]:
    """Drop by magnitude, rounded down; grow as many where |gradient| is largest; what returns stays as it was."""
    drops = [drop_smallest(layer, rate, math.floor) for layer in layers]
    return [
        without_returning(drop, grow_largest(layer, drop, layer.grad, len(drop)))
        for layer, drop in zip(layers, drops, strict=True)
    ]


def static(layers: Sequence[Layer], rate: float, noise: Noise, target: int | None = None) -> list[Decision]:
    return [([], []) for _ in layers]


def lowest_of_all(layers: Sequence[Layer], count: int) -> list[int]:
    """Return how many weights each layer loses if the units of lowest mean magnitude of all of them leave.

    Whole units until there are `count` weights. The last unit of a layer stays.
    """
    ranking = []
    for number, layer in enumerate(layers):
        units = [unit for unit in layer.units() if layer.active[unit].all()]
        means = [math.fsum(abs(float(layer.weight[i])) for i in unit) / len(unit) for unit in units]
        ranking += [(mean, number) for mean in sorted(means)[:-1]]
    counts = [0] * len(layers)
    for _, number in sorted(ranking):
        if sum(counts) < count:
            counts[number] += layers[number].size
    return counts


def dsr(layers: Sequence[Layer], rate: float, noise: Noise, target: int | None = None) -> list[Decision]:
    """Drop the smallest of all layers; grow at random, by what survives, and not where it was just dropped."""
    existing = [int(layer.active.sum()) for layer in layers]
    counts = lowest_of_all(layers, math.ceil(rate * sum(existing)))
    drops = [drop_count(layer, count) for layer, count in zip(layers, counts, strict=True)]
    room, sizes = [int(layer.candidate.sum()) for layer in layers], [layer.size for layer in layers]
    enough = sum(room) >= sum(counts) and nearest_below(sum(counts), room, sizes) == sum(counts)
    if not enough:
        room = [free + count for free, count in zip(room, counts, strict=True)]
    share = [Fraction(n - count) for n, count in zip(existing, counts, strict=True)]
    each = apportion(sum(counts), share if any(share) else [Fraction(1)] * len(share), room, sizes)
    decisions = []
    for layer, drop, count in zip(layers, drops, each, strict=True):
        offered = growable(layer, [] if enough else drop)
        places, drawn = [i for unit in offered for i in unit], np.zeros(len(layer.weight))
        drawn[places] = noise(len(places))
        decisions.append((drop, choose(offered, drawn, count // layer.size, largest=True)))
    return decisions


def gmp(layers: Sequence[Layer], rate: float, noise: Noise, target: int | None = None) -> list[Decision]:
    """Drop the smallest, the same share of each layer, until as many are left as there are to be; nothing grows.

    Without a target, drop at the rate and grow the largest of what there is, which is what was dropped.
    """
    if target is None:
        drops = [drop_smallest(layer, rate) for layer in layers]
        return [
            (drop, grow_largest(layer, drop, layer.weight, len(drop)))
            for layer, drop in zip(layers, drops, strict=True)
        ]
    existing = [int(layer.active.sum()) for layer in layers]
    share = [Fraction(n) for n in existing]
    counts = apportion(surplus_of(layers, target), share, existing, [layer.size for layer in layers])
    return [(drop_count(layer, count), []) for layer, count in zip(layers, counts, strict=True)]


def granet(layers: Sequence[Layer], rate: float, noise: Noise, target: int | None = None) -> list[Decision]:
    """Prune the smallest of all layers to the target; then drop and grow, by |gradient|, at the rate in each layer."""
    decisions = []
    for layer, pruned in zip(layers, lowest_of_all(layers, surplus_of(layers, target)), strict=True):
        left = (int(layer.active.sum()) - pruned) // layer.size
        more = math.ceil(rate * left) * layer.size
        drop = drop_count(layer, pruned + more)
        decisions.append(without_returning(drop, grow_largest(layer, drop, layer.grad, more)))
    return decisions


def itop(layers: Sequence[Layer], rate: float, noise: Noise, target: int | None = None) -> list[Decision]:
    """Drop by magnitude; grow as many in the same layer where the noise is largest; what returns stays as it was."""
    decisions = []
    for layer in layers:
        drop = drop_smallest(layer, rate)
        places, drawn = [i for unit in growable(layer, drop) for i in unit], np.zeros(len(layer.weight))
        drawn[places] = noise(len(places))
        decisions.append(without_returning(drop, grow_largest(layer, drop, drawn, len(drop))))
    return decisions


def mest(layers: Sequence[Layer], rate: float, noise: Noise, target: int | None = None) -> list[Decision]:
    """Drop the lowest |weight| + |gradient| / 128; grow as many in the same layer where the noise is largest."""
    decisions = []
    for layer in layers:
        active = [unit for unit in layer.units() if layer.active[unit].all()]
        both = np.abs(layer.weight) + np.abs(layer.grad) / 128
        drop = choose(active, both, math.ceil(rate * len(active)), largest=False)
        places, drawn = [i for unit in growable(layer, drop) for i in unit], np.zeros(len(layer.weight))
        drawn[places] = noise(len(places))
        decisions.append((drop, grow_largest(layer, drop, drawn, len(drop))))
    return decisions


def acdc(layers: Sequence[Layer], rate: float, noise: Noise, target: int | None = None) -> list[Decision]:
    """Keep the largest of all layers, or grow all there is; without a target drop at the rate and grow that again."""
    existing = sum(int(layer.active.sum()) for layer in layers)
    surplus = math.ceil(rate * existing) if target is None else surplus_of(layers, target)
    if surplus < 0:
        return [([], sorted(i for unit in growable(layer, []) for i in unit)) for layer in layers]
    drops = [drop_count(layer, count) for layer, count in zip(layers, lowest_of_all(layers, surplus), strict=True)]
    if target is not None:
        return [(drop, []) for drop in drops]
    return [
        (drop, grow_largest(layer, drop, layer.weight, len(drop))) for layer, drop in zip(layers, drops, strict=True)
    ]


def srigl(layers: Sequence[Layer], rate: float, noise: Noise, target: int | None = None) -> list[Decision]:
    """Drop and grow as RigL; share the weights equally among the outputs that RigL would give enough."""
    decisions = []
    for number, layer in enumerate(layers):
        by_rigl = drop_smallest(layer, rate, math.floor)
        after = set(np.flatnonzero(layer.active)) - set(by_rigl) | set(
            grow_largest(layer, by_rigl, layer.grad, len(by_rigl))
        )
        rows = rows_of(layer)
        salient = [sum(unit[0] in after for unit in row) for row in rows]
        room = [sum(layer.active[unit[0]] or layer.candidate[unit[0]] for unit in row) for row in rows]
        fan_in = fan_ins(salient, room, 0.0 if number == len(layers) - 1 else 0.3)
        kept, joins = [], []
        for row, count in zip(rows, fan_in, strict=True):
            own = [unit for unit in row if layer.active[unit[0]] and unit[0] not in by_rigl]
            held = choose(own, layer.weight, count, largest=True)
            others = [unit for unit in row if unit[0] not in held and (layer.candidate[unit[0]] or unit[0] in by_rigl)]
            kept += held
            joins += choose(others, layer.grad, count - len(held) // layer.size, largest=True)
        drop = [int(i) for i in np.flatnonzero(layer.active) if i not in kept]
        decisions.append(without_returning(drop, sorted(joins)))
    return decisions


def fan_ins(salient: Sequence[int], room: Sequence[int], ablate_below: float) -> list[int]:
    """Hand out as many units as are salient, one at a time, to whoever has the fewest, then to the most salient.

    None go to an output of fewer salient ones than that part of the mean, rounded down, or of none, but as far as the
    others have no room.
    """
    total, order = sum(salient), sorted(range(len(salient)), key=lambda i: (-salient[i], i))
    takes = [True] * len(salient)
    if ablate_below:
        least = max(1, int(ablate_below * (total // len(salient))))
        while sum(most for most, each in zip(room, salient, strict=True) if each >= least) < total:
            least -= 1
        takes = [each >= least for each in salient]
    result = [0] * len(salient)
    for _ in range(total):
        open_ones = [i for i in order if takes[i] and result[i] < room[i]]
        result[min(open_ones, key=lambda i: result[i])] += 1
    return result


def chts(layers: Sequence[Layer], rate: float, noise: Noise, target: int | None = None) -> list[Decision]:
    """Draw what stays by weight and what grows by the paths of three links."""
    decisions = []
    for layer in layers:
        units = [unit for unit in layer.units() if layer.active[unit[0]]]
        weight = [math.fsum(abs(float(layer.weight[i])) for i in unit) / len(unit) for unit in units]
        count = len(units) - math.floor(rate * len(units))
        stays = race(
            [w ** (1 + 2 * layer.progress) for w in weight], noise(len(units) * layer.size)[:: layer.size], count
        )
        kept = [units[number] for number in stays]
        removed = [unit for unit in units if unit not in kept]
        absent = [unit for unit in layer.units() if layer.candidate[unit[0]]] + removed
        score = l3_scores(layer, kept, absent)
        grown = race(score, noise(len(absent) * layer.size)[:: layer.size], len(removed))
        joins = sorted(i for number in grown for i in absent[number])
        decisions.append(without_returning(sorted(i for unit in removed for i in unit), joins))
    return decisions


def race(weight: Sequence[float], noise: Sequence[float], count: int) -> list[int]:
    """Return the first `count` of those that arrive at -log(noise) / weight, those of weight zero after all others."""
    arrival = [(w == 0, -math.log(u) / (w or 1), n) for n, (w, u) in enumerate(zip(weight, noise, strict=True))]
    return sorted(n for _, _, n in sorted(arrival)[:count])


def l3_scores(layer: Layer, kept: Sequence[list[int]], absent: Sequence[list[int]], rule: str = "ch2") -> list[float]:
    """Sum (1 + i) / (1 + e), or 1 / (1 + e), over the nodes on paths of three links between the ends of each link."""
    ends = {tuple(unit): (r, c) for r, row in enumerate(rows_of(layer)) for c, unit in enumerate(row)}
    linked = {ends[tuple(unit)] for unit in kept}
    of_output, of_input = [{}, {}]
    for r, c in linked:
        of_output.setdefault(r, set()).add(c)
        of_input.setdefault(c, set()).add(r)
    scores = []
    for unit in absent:
        r, c = ends[tuple(unit)]
        total = 0.0
        for neighbours, own, others in (
            (of_output, of_output.get(r, set()), of_input.get(c, set())),
            (of_input, of_input.get(c, set()), of_output.get(r, set())),
        ):
            for node in others:
                inside = len(neighbours[node] & own)
                if inside:
                    total += (1 + inside if rule == "ch2" else 1) / (1 + len(neighbours[node]) - inside - 1)
        scores.append(total)
    return scores


def gse(layers: Sequence[Layer], rate: float, noise: Noise, target: int | None = None) -> list[Decision]:
    """Drop by magnitude; grow as many where |gradient| is largest, not where it was just dropped."""
    drops = [drop_smallest(layer, rate) for layer in layers]
    free = [growable(layer, []) for layer in layers]
    room, sizes = [len(units) * layer.size for units, layer in zip(free, layers, strict=True)], [x.size for x in layers]
    total = sum(map(len, drops))
    enough = sum(room) >= total and nearest_below(total, room, sizes) == total
    if not enough:
        free = [growable(layer, drop) for layer, drop in zip(layers, drops, strict=True)]
    room = [len(units) * layer.size for units, layer in zip(free, layers, strict=True)]
    counts = apportion(total, [Fraction(len(drop)) for drop in drops], room, sizes) if total else [0] * len(layers)
    return [
        (drop, choose(units, layer.grad, count // layer.size, largest=True))
        for layer, drop, units, count in zip(layers, drops, free, counts, strict=True)
    ]


UPDATES = {
    "static": static,
    "set": set_,
    "rigl": rigl,
    "sparse-momentum": sparse_momentum,
    "dsr": dsr,
    "gmp": gmp,
    "granet": granet,
    "itop": itop,
    "mest": mest,
    "acdc": acdc,
    "srigl": srigl,
    "chts": chts,
    "gse": gse,
}
