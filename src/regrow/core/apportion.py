"""Apportionment: a total split into whole units, in proportion to shares and within the room there is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

__all__ = ["apportion", "reachable"]

Sizes = Mapping[str, int]
Overflow = Literal["proportional", "equal"]


def apportion(
    total: int,
    share: Mapping[str, float],
    room: Mapping[str, int],
    unit_size: Sizes | None = None,
    *,
    at_least: Mapping[str, int] | None = None,
    fill: float = 1.0,
    overflow: Overflow = "proportional",
) -> dict[str, int]:
    """Split `total` into whole units proportional to `share`, none above its `room`.

    What a full layer cannot take is shared among the rest, in the same proportion or in equal parts; the last units go
    to the largest remainders, ties to the earlier name. The arithmetic is exact.

    Where names have units of several sizes and these do not make `total`, as few weights as possible are exchanged so
    that they do. If no choice of whole units makes `total`, the largest sum below it is handed out.

    Args:
        total: weights to hand out; at most the sum of `room`.
        share: a non-negative, finite weight for each name; all zero means equal shares.
        room: the most each name may take; what is beyond its last whole unit stays free.
        unit_size: weights in a unit of each name, at least 1; None means that each weight is a unit.
        at_least: the least each name gets, as far as there is room, rounded up to whole units. Where `total` is too
            small for that, it counts for none.
        fill: the part of the room that is filled, in (0, 1]; where `total` is too large for that, all of it is. A
            minimum counts more.
        overflow: how what does not fit is shared among the names that have room: in the proportion of their shares,
            or in equal parts.

    Raises:
        ValueError: if `total` is negative or exceeds the room there is, if the names differ, if a share
            is negative or not finite, or if `fill` is outside (0, 1].

    Example:
        >>> apportion(10, {"a": 2.0, "b": 1.0, "c": 1.0}, {"a": 3, "b": 9, "c": 9})
        {'a': 3, 'b': 4, 'c': 3}
        >>> apportion(11, {"a": 2.0, "b": 1.0}, {"a": 9, "b": 9}, unit_size={"a": 4, "b": 3})
        {'a': 8, 'b': 3}
        >>> apportion(12, {"a": 8.0, "b": 3.0, "c": 1.0}, {"a": 4, "b": 9, "c": 9}, overflow="equal")
        {'a': 4, 'b': 5, 'c': 3}
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
    if not 0 < fill <= 1:
        raise ValueError(f"fill is {fill}: it is the part of the room to be filled, in (0, 1]")

    room = {name: room[name] // size[name] * size[name] for name in share}
    total = reachable(total, room, size)
    least = _least(total, at_least or {}, room, size)
    most = {name: max(math.floor(fill * room[name] / size[name]) * size[name], least[name]) for name in share}
    if reachable(total, most, size) < total:
        most = room
    quota = _proportional(total, {name: Fraction(value) for name, value in share.items()}, least)
    return _round_to_total(_capped(quota, share, most, overflow), total, most, size)


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


def _least(total: int, at_least: Mapping[str, int], room: Mapping[str, int], size: Sizes) -> dict[str, int]:
    """Return the whole units that each name gets at least; none if they are more than `total`."""
    least = {name: min(-(-at_least.get(name, 0) // size[name]) * size[name], room[name]) for name in room}
    return least if sum(least.values()) <= total else dict.fromkeys(room, 0)


def _proportional(total: int, share: Mapping[str, Fraction], least: Mapping[str, int]) -> dict[str, Fraction]:
    """Split `total` in proportion to `share`, exactly, none below its least; all shares zero mean equal shares."""
    if not any(share.values()):
        share = dict.fromkeys(share, Fraction(1))
    result = {name: Fraction(least[name]) for name in share}
    above = [name for name in share if share[name]]
    while above:
        rest = total - sum(least[name] for name in share if name not in above)
        weight = sum(share[name] for name in above)
        below = [name for name in above if rest * share[name] < least[name] * weight]
        if not below:
            return {**result, **{name: rest * share[name] / weight for name in above}}
        above = [name for name in above if name not in below]
    return result


def _capped(
    quota: Mapping[str, Fraction], share: Mapping[str, float], most: Mapping[str, int], overflow: Overflow
) -> dict[str, Fraction]:
    """Cut what is above its most, and share that among the rest until all is handed out."""
    result = {name: min(value, Fraction(most[name])) for name, value in quota.items()}
    excess = sum(quota.values()) - sum(result.values())
    while excess:
        open_names = [name for name in result if result[name] < most[name]]
        weights = {name: Fraction(share[name] if overflow == "proportional" else 1) for name in open_names}
        if not any(weights.values()):
            weights = dict.fromkeys(open_names, Fraction(1))
        total, handed_out = sum(weights.values()), Fraction(0)
        for name in open_names:
            more = min(excess * weights[name] / total, most[name] - result[name])
            result[name] += more
            handed_out += more
        excess -= handed_out
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
