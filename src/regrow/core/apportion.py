"""Apportionment: a total split into whole units, in proportion to shares and within the room there is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

__all__ = ["apportion", "reachable"]

Sizes = Mapping[str, int]


def apportion(
    total: int, share: Mapping[str, float], room: Mapping[str, int], unit_size: Sizes | None = None
) -> dict[str, int]:
    """Split `total` into whole units proportional to `share`, none above its `room`.

    What a full layer cannot take is shared among the rest in the same proportion; the last units go to the
    largest remainders, ties to the earlier name. The arithmetic is exact.

    Where names have units of several sizes and these do not make `total`, as few weights as possible are exchanged so
    that they do. If no choice of whole units makes `total`, the largest sum below it is handed out.

    Args:
        total: weights to hand out; at most the sum of `room`.
        share: a non-negative, finite weight for each name; all zero means equal shares.
        room: the most each name may take; what is beyond its last whole unit stays free.
        unit_size: weights in a unit of each name, at least 1; None means that each weight is a unit.

    Raises:
        ValueError: if `total` is negative or exceeds the room there is, if the names differ, or if a share
            is negative or not finite.

    Example:
        >>> apportion(10, {"a": 2.0, "b": 1.0, "c": 1.0}, {"a": 3, "b": 9, "c": 9})
        {'a': 3, 'b': 4, 'c': 3}
        >>> apportion(11, {"a": 2.0, "b": 1.0}, {"a": 9, "b": 9}, unit_size={"a": 4, "b": 3})
        {'a': 8, 'b': 3}
    """
    size = dict.fromkeys(share, 1) if unit_size is None else unit_size
    if not share.keys() == room.keys() == size.keys():
        raise ValueError(
            f"share names {sorted(share)} differ from room names {sorted(room)} or those of units {sorted(size)}"
        )
    if not 0 <= total <= sum(room.values()):
        raise ValueError(f"cannot hand out {total} units: there is room for 0 to {sum(room.values())}")
    for name, value in share.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"the share of {name!r} is {value}; shares are finite and not negative")

    room = {name: room[name] // size[name] * size[name] for name in share}
    total = reachable(total, room, size)
    quota = _fill(total, {name: Fraction(value) for name, value in share.items()}, room)
    return _round_to_total(quota, total, room, size)


def reachable(total: int, room: Mapping[str, int], unit_size: Sizes) -> int:
    """Return the largest sum of whole units that is at most `total`, none above its room.

    Example:
        >>> reachable(11, {"a": 8, "b": 3}, {"a": 4, "b": 3}), reachable(9, {"a": 8, "b": 3}, {"a": 4, "b": 3})
        (11, 8)
    """
    space: dict[int, int] = {}
    for name, size in unit_size.items():
        space[size] = space.get(size, 0) + room[name] // size
    have, left = {}, total
    for size in sorted(space, reverse=True):
        have[size] = min(space[size], left // size)
        left -= size * have[size]
    if left == 0 or have == space:
        return total - left
    free = {size: space[size] - have[size] for size in space}
    short = next(short for short in range(left + 1) if _exchange(left - short, have, free) is not None)
    return total - short


def _fill(total: int, share: dict[str, Fraction], room: Mapping[str, int]) -> dict[str, Fraction]:
    """Split `total` in proportion to `share`, exactly, none above its room."""
    result = dict.fromkeys(share, Fraction(0))
    open_names = [name for name in share if room[name] > 0]
    left = total
    while open_names and left:
        weight = sum(share[name] for name in open_names)
        if weight == 0:
            share.update(dict.fromkeys(open_names, Fraction(1)))
            weight = Fraction(len(open_names))
        quota = {name: left * share[name] / weight for name in open_names}
        full = [name for name in open_names if quota[name] >= room[name]]
        if not full:
            return {**result, **quota}
        for name in full:
            result[name] = Fraction(room[name])
            left -= room[name]
        open_names = [name for name in open_names if quota[name] < room[name]]
    return result


def _round_to_total(quota: Mapping[str, Fraction], total: int, room: Mapping[str, int], size: Sizes) -> dict[str, int]:
    """Round `quota` to whole units that sum to `total`, which some choice of units must make."""
    units = {name: math.floor(value / size[name]) for name, value in quota.items()}
    rest = total - sum(units[name] * size[name] for name in units)

    def missing(name: str) -> Fraction:
        return quota[name] / size[name] - units[name]

    # sorted() is stable, so equal remainders keep the order of the names
    for name in sorted(quota, key=missing, reverse=True):
        # a unit that overshoots by less than would be missing without it is taken, and the exchange takes back the rest
        if size[name] <= 2 * rest and units[name] * size[name] < room[name]:
            units[name] += 1
            rest -= size[name]
    if not rest:
        return {name: units[name] * size[name] for name in units}

    have, free = dict.fromkeys(size.values(), 0), dict.fromkeys(size.values(), 0)
    for name in units:
        have[size[name]] += units[name]
        free[size[name]] += room[name] // size[name] - units[name]
    exchanged = _exchange(rest, have, free)
    assert exchanged is not None, "a sum that is reachable was not reached"
    for which, more in exchanged.items():
        names = [name for name in units if size[name] == which]
        for _ in range(more):
            units[max((n for n in names if units[n] * which < room[n]), key=missing)] += 1
        for _ in range(-more):
            units[min((n for n in reversed(names) if units[n]), key=missing)] -= 1
    return {name: units[name] * size[name] for name in units}


def _exchange(rest: int, have: Mapping[int, int], free: Mapping[int, int]) -> dict[int, int] | None:
    """Return how many units more of each size make `rest` weights more or fewer, moving as few weights as possible.

    Of several ways it is the one with the most units of the smallest size, then of the next. None if there is none.

    Args:
        rest: weights to add; negative to take away.
        have: units by size that may be taken away.
        free: units by size that may be added.
    """
    # Put units added and taken in an order in which the sum stays within a unit of 0 and `rest`. Where a sum came
    # twice, what lies between could be left out: so no more units than there are such sums are ever moved.
    most = abs(rest) + 2 * max(have)
    ways: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    sizes = sorted(have)
    for number, size in enumerate(sizes):
        last = number == len(sizes) - 1
        following: dict[int, tuple[int, tuple[int, ...]]] = {}
        for added, (moved, fewer) in ways.items():
            least, largest = -min(have[size], most), min(free[size], most)
            if last:
                more, remainder = divmod(rest - added, size)
                choices = range(more, more + 1) if not remainder and least <= more <= largest else range(0)
            else:
                choices = range(least, largest + 1)
            for more in choices:
                way = (moved + abs(more) * size, (*fewer, -more))
                following[added + more * size] = min(way, following.get(added + more * size, way))
        ways = following
    return None if rest not in ways else {size: -fewer for size, fewer in zip(sizes, ways[rest][1], strict=True)}
