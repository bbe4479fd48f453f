"""The methods once more: slow, plain, over dense arrays, written from the definitions and not from the library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np


@dataclass
class Layer:
    """A dense weight as flat arrays. Positions neither active nor candidates may not be grown."""

    weight: np.ndarray
    active: np.ndarray
    candidate: np.ndarray
    grad: np.ndarray
    momentum: np.ndarray
    shape: tuple[int, ...] = ()  # of the dense weight; () means a vector
    unit: tuple[int, int] = (1, 1)
    progress: float = 1 / 8  # the part of the training that is over

    @property
    def size(self) -> int:
        """Weights in a unit."""
        return self.unit[0] * self.unit[1]

    def units(self) -> list[list[int]]:
        """Return the flat positions of each unit, in the order of their numbers."""
        return units_of(self.shape or (len(self.weight),), self.unit)


def units_of(shape: Sequence[int], unit: tuple[int, int]) -> list[list[int]]:
    """Return the flat positions of each block of `unit` outputs and inputs at one position of the kernel."""
    outputs, inputs, *kernel = shape if len(shape) > 1 else (*shape, 1)
    flat = np.arange(math.prod(shape)).reshape(outputs, inputs, math.prod(kernel))
    return [
        [int(flat[o + i, c + j, k]) for i in range(unit[0]) for j in range(unit[1])]
        for o in range(0, outputs, unit[0])
        for c in range(0, inputs, unit[1])
        for k in range(flat.shape[2])
    ]


Decision = tuple[list[int], list[int]]
Noise = Callable[[int], Sequence[float]]


def water_fill(total: int, share: Sequence[Fraction], room: Sequence[int]) -> list[Fraction]:
    """Return `min(room, level * share)` with the level at which the sum is `total`.

    Once every name with a share is full, those without one share the rest as equals.
    """
    open_names = [i for i in range(len(share)) if share[i] > 0]
    if sum(room[i] for i in open_names) <= total:
        quota = [Fraction(room[i]) if share[i] > 0 else Fraction(0) for i in range(len(share))]
        rest = [i for i in range(len(share)) if share[i] == 0]
        if rest:
            left = total - int(sum(quota))
            for i, part in zip(rest, water_fill(left, [Fraction(1)] * len(rest), [room[i] for i in rest]), strict=True):
                quota[i] = part
        return quota
    full: list[int] = []
    for i in sorted(open_names, key=lambda i: room[i] / share[i]):
        level = room[i] / share[i]
        if sum(min(Fraction(room[k]), level * share[k]) for k in open_names) > total:
            break
        full.append(i)
    taken = sum(room[i] for i in full)
    level = (total - taken) / sum(share[i] for i in open_names if i not in full)
    return [Fraction(room[i]) if i in full else level * share[i] for i in range(len(share))]


def nearest_below(total: int, room: Sequence[int], size: Sequence[int]) -> int:
    """Return the largest sum of whole units, within the room, that is not above `total`."""
    made = 1  # the bit of each sum that can be made
    for most, step in zip(room, size, strict=True):
        left, together = most // step, 1
        while left:  # 1, 2, 4, ... and the remaining units: together they make every number of units
            together = min(together, left)
            made |= made << together * step
            left, together = left - together, 2 * together
    return (made & ((1 << total + 1) - 1)).bit_length() - 1


def apportion(
    total: int, share: Sequence[Fraction], room: Sequence[int], size: Sequence[int] | None = None
) -> list[int]:
    """Hand out whole units: the water filling, rounded by largest remainder, ties to the earlier.

    A unit is taken where that leaves no more too many than would be missing without it. What units of several sizes
    then leave too few or too many, the exchange that moves the fewest weights mends, of several the one that adds the
    most of the smallest units: each unit joins where most is missing and leaves where least is.
    """
    size = size or [1] * len(room)
    room = [most // step * step for most, step in zip(room, size, strict=True)]
    total = nearest_below(total, room, size)
    return whole_units(total, water_fill(total, share, room), room, size)


def whole_units(total: int, quota: Sequence[Fraction], room: Sequence[int], size: Sequence[int]) -> list[int]:
    """Round what each name would get to whole units that sum to `total`."""
    quota = [q / step for q, step in zip(quota, size, strict=True)]
    units = [math.floor(q) for q in quota]
    rest = total - sum(n * step for n, step in zip(units, size, strict=True))
    for i in sorted(range(len(quota)), key=lambda i: (units[i] - quota[i], i)):
        if size[i] <= 2 * rest and (units[i] + 1) * size[i] <= room[i]:
            units[i] += 1
            rest -= size[i]
    if rest:
        _exchange(rest, units, quota, room, size)
    return [n * step for n, step in zip(units, size, strict=True)]


def _exchange(rest: int, units: list[int], quota: Sequence[Fraction], room: Sequence[int], size: Sequence[int]) -> None:
    sizes = sorted(set(size))
    choices = []
    for step in sizes:
        have = sum(n for n, s in zip(units, size, strict=True) if s == step)
        most = sum(most // s for most, s in zip(room, size, strict=True) if s == step)
        far = 4 * max(sizes)  # nothing is gained by exchanging more
        choices.append(range(-min(have, far), min(most - have, far) + 1))
    ways = [way for way in product(*choices) if sum(n * s for n, s in zip(way, sizes, strict=True)) == rest]
    best = min(ways, key=lambda way: (sum(abs(n) * s for n, s in zip(way, sizes, strict=True)), [-n for n in way]))
    for more, step in zip(best, sizes, strict=True):
        for _ in range(abs(more)):
            of_size = [i for i in range(len(size)) if size[i] == step]
            if more > 0:
                free = [i for i in of_size if (units[i] + 1) * step <= room[i]]
                units[min(free, key=lambda i: (units[i] - quota[i], i))] += 1
            else:
                units[max((i for i in of_size if units[i]), key=lambda i: (units[i] - quota[i], i))] -= 1


def choose(units: Sequence[list[int]], score: np.ndarray, count: int, *, largest: bool) -> list[int]:
    """Return the positions of the `count` units of largest or smallest mean |score|, ties to the lower unit."""
    sign = -1 if largest else 1
    mean = [sign * math.fsum(abs(float(score[i])) for i in unit) / len(unit) for unit in units]
    ranked = sorted(range(len(units)), key=lambda n: (mean[n], min(units[n])))
    return sorted(i for n in ranked[:count] for i in units[n])


def drop_smallest(layer: Layer, rate: float, rounded: Callable[[float], int] = math.ceil) -> list[int]:
    """Return the positions of the active units of smallest magnitude, ties to the lower unit."""
    active = [unit for unit in layer.units() if layer.active[unit].all()]
    return choose(active, layer.weight, rounded(rate * len(active)), largest=False)


def drop_by_sign(layer: Layer, rate: float) -> list[int]:
    """Return the positions of the active units whose weights come first among those of their sign, by magnitude."""
    first = np.zeros(len(layer.weight))
    for negative in (False, True):
        of_sign = [i for unit in layer.units() for i in unit if layer.active[i] and (layer.weight[i] < 0) == negative]
        for number, i in enumerate(sorted(of_sign, key=lambda i: abs(layer.weight[i])), start=1):
            first[i] = number / len(of_sign)
    active = [unit for unit in layer.units() if layer.active[unit].all()]
    return choose(active, first, math.ceil(rate * len(active)), largest=False)


def without_returning(drop: Sequence[int], grow: Sequence[int]) -> Decision:
    """Return what leaves and joins if weights that do both stay as they were."""
    return [i for i in drop if i not in grow], [i for i in grow if i not in drop]


def grow_largest(layer: Layer, dropped: Sequence[int], score: np.ndarray, count: int) -> list[int]:
    """Return `count` positions, those of the units of largest score among candidates and dropped."""
    return choose(growable(layer, dropped), score, count // layer.size, largest=True)


def growable(layer: Layer, dropped: Sequence[int]) -> list[list[int]]:
    """Return the units that may be grown: those that were candidates before, then those dropped."""
    free = [unit for unit in layer.units() if layer.candidate[unit].all()]
    return free + [unit for unit in layer.units() if set(unit) <= set(dropped)]


def with_least(total: int, share: Sequence[Fraction], least: Sequence[int]) -> list[Fraction]:
    """Split `total` in proportion to `share`, but give each its least: the share rises until the sum fits."""
    if not any(share):
        share = [Fraction(1)] * len(share)
    quota = [Fraction(n) for n in least]
    # those with the largest least for their share are the last to rise above it
    order = sorted((i for i in range(len(share)) if share[i]), key=lambda i: Fraction(least[i]) / share[i])
    for count in range(len(order), 0, -1):
        above = order[:count]
        level = (total - sum(least[i] for i in range(len(least)) if i not in above)) / sum(share[i] for i in above)
        if all(level * share[i] >= least[i] for i in above):
            for i in above:
                quota[i] = level * share[i]
            return quota
    return quota


def share_equally(quota: Sequence[Fraction], most: Sequence[int]) -> list[Fraction]:
    """Cut at the most; what is above is shared equally among those that have room, again and again."""
    quota, excess = list(quota), Fraction(0)
    while True:
        for i, highest in enumerate(most):
            if quota[i] > highest:
                excess += quota[i] - highest
                quota[i] = Fraction(highest)
        having_room = [i for i in range(len(quota)) if quota[i] < most[i]]
        if not excess:
            return quota
        for i in having_room:
            quota[i] += excess / len(having_room)
        excess = Fraction(0)


def authors_share(
    total: int, share: Sequence[Fraction], empty: Sequence[bool], room: Sequence[int], size: Sequence[int]
) -> list[int]:
    """Hand out as the authors of sparse momentum do, but exactly.

    A layer with a share, or that is empty, gets a unit; none is filled beyond .99 of its room unless there is nowhere
    else to go; what is above is shared equally.
    """
    room = [most // step * step for most, step in zip(room, size, strict=True)]
    total = nearest_below(total, room, size)
    least = [min(step, most) if s or e else 0 for s, e, most, step in zip(share, empty, room, size, strict=True)]
    if sum(least) > total:
        least = [0] * len(least)
    most = [max(math.floor(0.99 * n / step) * step, low) for n, step, low in zip(room, size, least, strict=True)]
    if nearest_below(total, most, size) < total:
        most = room
    return whole_units(total, share_equally(with_least(total, share, least), most), most, size)


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


def surplus_of(layers: Sequence[Layer], target: int | None) -> int:
    """Return how many weights are too many, in whole units of one size."""
    existing, size = sum(int(layer.active.sum()) for layer in layers), layers[0].size
    return 0 if target is None else -(-(existing - target) // size) * size


def drop_count(layer: Layer, count: int) -> list[int]:
    """Return the positions of the smallest active units."""
    active = [unit for unit in layer.units() if layer.active[unit].all()]
    return choose(active, layer.weight, count // layer.size, largest=False)


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


def rows_of(layer: Layer) -> list[list[list[int]]]:
    """Return the units of each output, or of each group of outputs that a unit spans."""
    units = layer.units()
    count = (layer.shape or (len(layer.weight),))[0] // layer.unit[0]
    in_each = len(units) // count
    return [units[row * in_each : (row + 1) * in_each] for row in range(count)]


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


def cosine(start: float, end: float, step: int, steps: int) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


# The prune rate of each method at a step of a training of `steps` steps.
RATES: dict[str, Callable[[int, int], float]] = {
    "static": lambda step, steps: 0.0,
    "set": lambda step, steps: 0.3,
    "rigl": lambda step, steps: cosine(0.3, 0.0, step, round(0.75 * steps)),
    "sparse-momentum": lambda step, steps: cosine(0.5, 0.005, step, steps),
    "dsr": lambda step, steps: 0.15,
    "gmp": lambda step, steps: 0.0,
    "granet": lambda step, steps: cosine(0.5, 0.005, step, steps),
    "itop": lambda step, steps: cosine(0.5, 0.005, step, steps),
    "mest": lambda step, steps: 0.2 if step < 9 * steps / 16 else 0.1,
    "acdc": lambda step, steps: 0.0,
    "srigl": lambda step, steps: cosine(0.3, 0.0, step, round(0.75 * steps)),
    "chts": lambda step, steps: 0.3,
    "gse": lambda step, steps: cosine(0.2, 0.0, step, steps),
}


def cubic(start: float, end: float, step: int, first: int, last: int) -> float:
    """Return the density of Zhu & Gupta at a step: one minus `s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3`."""
    initial, final = 1 - start, 1 - end
    progress = min(max((step - first) / (last - first), 0.0), 1.0)
    return 1 - (final + (initial - final) * (1 - progress) ** 3)


def alternating(step: int, steps: int, phase: int) -> float:
    """Return the density of AC/DC at a step: sparse and dense in turn from a tenth of the training to 0.85 of it."""
    begin, last = math.ceil(steps / 10 / phase) * phase, math.floor(0.85 * steps / phase) * phase
    if step >= last:
        return 0.1
    number = (step - begin) // phase
    ends_before_the_last = begin + (number + 1) * phase < last
    return 0.1 if step >= begin and number % 2 == 0 and ends_before_the_last else 1.0


# The density of each method that changes it, with its usual settings and an update every `every` steps.
DENSITIES: dict[str, Callable[[int, int, int], float]] = {
    "gmp": lambda step, steps, every: cubic(
        1.0, 0.1, step, steps // 4 // every * every, 3 * steps // 4 // every * every
    ),
    "granet": lambda step, steps, every: cubic(0.5, 0.1, step, 0, 69 * steps // 100 // every * every),
    "acdc": alternating,
}
# The part of the training after which there are no more updates.
UNTIL = {"rigl": 0.75, "dsr": 0.95, "mest": 0.75, "srigl": 0.75}
RESETS = {"set", "rigl", "dsr", "granet", "itop", "mest", "acdc", "srigl", "chts", "gse"}
# Methods whose update takes the place of a step.
REPLACES = {"rigl", "srigl"}


@dataclass
class Trainer:
    """Sparse training of a two-layer perceptron by hand: `tanh(x @ w0.T) @ w1.T`, mean squared error, SGD.

    Every tensor is dense; a mask is multiplied on after each step.
    """

    weights: list[np.ndarray]
    masks: list[np.ndarray]
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    units: Sequence[tuple[int, int]] = ((1, 1), (1, 1))

    def __post_init__(self) -> None:
        self.buffers: list[np.ndarray] = []
        self.gradients: list[np.ndarray] = []

    def step(self, x: np.ndarray, target: np.ndarray, *, moves_weights: bool = True) -> None:
        """Take a step, or find the gradient of one alone."""
        hidden = np.tanh(x @ self.weights[0].T)
        error = 2 * (hidden @ self.weights[1].T - target) / target.size
        into_hidden = (error @ self.weights[1]) * (1 - hidden**2)
        self.gradients = [into_hidden.T @ x, error.T @ hidden]

        if not moves_weights:
            return
        moves = [g + self.weight_decay * w for g, w in zip(self.gradients, self.weights, strict=True)]
        if self.momentum:
            previous = self.buffers or [np.zeros_like(move) for move in moves]
            self.buffers = [self.momentum * b + move for b, move in zip(previous, moves, strict=True)]
            after = zip(moves, self.buffers, strict=True)
            moves = [move + self.momentum * b if self.nesterov else b for move, b in after]
        self.weights = [
            (w - self.lr * move) * mask for w, move, mask in zip(self.weights, moves, self.masks, strict=True)
        ]

    def update(
        self, method: str, rate: float, noise: Noise, target: int | None = None, *, progress: float = 0.0
    ) -> None:
        """Carry out one update of `method`, in place."""
        buffers = self.buffers or [np.zeros_like(w) for w in self.weights]
        layers = [
            Layer(w.ravel(), mask.ravel(), ~mask.ravel(), g.ravel(), b.ravel(), w.shape, unit, progress)
            for w, mask, g, b, unit in zip(self.weights, self.masks, self.gradients, buffers, self.units, strict=True)
        ]
        for i, (drop, grow) in enumerate(UPDATES[method](layers, rate, noise, target)):
            self.weights[i].ravel()[drop] = 0
            self.masks[i].ravel()[drop] = False
            self.masks[i].ravel()[grow] = True
            if method in RESETS and self.buffers:
                self.buffers[i].ravel()[grow] = 0
            if method == "acdc" and self.buffers and grow:
                self.buffers[i][:] = 0
