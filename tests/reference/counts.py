"""How many: a total shared among layers in whole units, exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import product


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
