from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import reference
from regrow.core.apportion import apportion, reachable

SHARES = st.one_of(
    st.integers(0, 6).map(float),  # ties and zeros
    st.floats(0, 1e6, allow_subnormal=False),
)


@st.composite
def problems(draw):
    """Draw (total, share, room) with a total that fits."""
    names = "abcdef"[: draw(st.integers(1, 6))]
    share = {name: draw(SHARES) for name in names}
    room = {name: draw(st.integers(0, 30)) for name in names}
    return draw(st.integers(0, sum(room.values()))), share, room


@st.composite
def unit_problems(draw):
    """Draw (total, share, room, unit_size) with a total that fits; the room is not always in whole units."""
    total, share, room = draw(problems())
    sizes = draw(st.sampled_from([[1, 2, 3, 4], [2, 4], [3, 4], [4, 6, 9], [5, 7]]))
    return total, share, room, {name: draw(st.sampled_from(sizes)) for name in share}


@given(problems())
def test_the_total_is_handed_out_exactly_and_within_room(problem):
    total, share, room = problem
    result = apportion(total, share, room)
    assert list(result) == list(share)
    assert sum(result.values()) == total
    assert all(0 <= result[name] <= room[name] for name in room)


@given(problems())
def test_full_layers_are_water_filled_as_brute_force_says(problem):
    total, share, room = problem
    expected = reference.apportion(total, [Fraction(s) for s in share.values()], list(room.values()))
    assert list(apportion(total, share, room).values()) == expected


@given(problems())
def test_without_a_full_layer_shares_are_proportional_to_within_a_unit(problem):
    total, share, room = problem
    assume(any(share.values()))
    result = apportion(total, share, dict.fromkeys(room, total))
    whole = sum(map(Fraction, share.values()))
    assert all(abs(result[name] - total * Fraction(share[name]) / whole) < 1 for name in share)


@given(problems())
def test_a_larger_share_never_gets_less_in_the_same_room(problem):
    total, share, room = problem
    largest = max(room.values())
    result = apportion(total, share, dict.fromkeys(room, largest))
    by_share = sorted(share, key=share.__getitem__)
    for smaller, larger in pairwise(by_share):
        assert share[smaller] == share[larger] or result[smaller] <= result[larger]


@given(problems(), st.floats(0, 1e6, allow_subnormal=False))
def test_a_layer_never_loses_by_a_larger_share(problem, more):
    total, share, room = problem
    assume(any(share.values()))  # all zero means equal shares: there the first positive share changes the rule
    raised = {**share, "a": share["a"] + more}
    assert apportion(total, raised, room)["a"] >= apportion(total, share, room)["a"]


@given(unit_problems())
def test_whole_units_make_the_total_or_the_largest_sum_below(problem):
    total, share, room, size = problem
    result = apportion(total, share, room, size)
    assert list(result) == list(share)
    assert all(0 <= result[name] <= room[name] and result[name] % size[name] == 0 for name in room)
    nearest = reference.nearest_below(total, list(room.values()), list(size.values()))
    assert sum(result.values()) == reachable(total, room, size) == nearest


@given(unit_problems())
def test_whole_units_are_handed_out_as_brute_force_says(problem):
    total, share, room, size = problem
    expected = reference.apportion(
        total, [Fraction(s) for s in share.values()], list(room.values()), list(size.values())
    )
    assert list(apportion(total, share, room, size).values()) == expected


@given(problems(), st.integers(1, 5))
def test_units_of_one_size_are_handed_out_as_single_ones_are(problem, size):
    total, share, room = problem
    scaled = apportion(total * size, share, {name: n * size for name, n in room.items()}, dict.fromkeys(share, size))
    assert scaled == {name: n * size for name, n in apportion(total, share, room).items()}


def test_a_large_problem_in_units_of_several_sizes_is_quick():
    names = [f"{i}.weight" for i in range(200)]
    size = {name: (16, 12, 9, 5)[i % 4] for i, name in enumerate(names)}
    room = {name: 10**6 * size[name] for name in names}
    share = {name: 1.0 + i for i, name in enumerate(names)}
    total = 123_456_789
    assert sum(apportion(total, share, room, size).values()) == total


@pytest.mark.parametrize(
    ("total", "share", "room", "size", "expected"),
    [
        (7, {"a": 1.0, "b": 1.0}, {"a": 8, "b": 9}, {"a": 4, "b": 3}, {"a": 4, "b": 3}),
        (8, {"a": 0.0, "b": 1.0}, {"a": 8, "b": 9}, {"a": 4, "b": 3}, {"a": 8, "b": 0}),
        (5, {"a": 1.0, "b": 1.0}, {"a": 8, "b": 9}, {"a": 4, "b": 3}, {"a": 4, "b": 0}),
        (6, {"a": 1.0, "b": 1.0}, {"a": 9, "b": 9}, {"a": 4, "b": 1}, {"a": 4, "b": 2}),
        (6, {"a": 1.0, "b": 1.0}, {"a": 7, "b": 7}, {"a": 4, "b": 4}, {"a": 4, "b": 0}),
    ],
    ids=["both fit", "exchanged", "nearest below", "single weights fill up", "ties to the earlier"],
)
def test_small_cases_in_units_by_hand(total, share, room, size, expected):
    assert apportion(total, share, room, size) == expected


@pytest.mark.parametrize(
    ("total", "share", "room", "expected"),
    [
        (2, {"b": 1.0, "a": 1.0, "c": 1.0}, {"b": 9, "a": 9, "c": 9}, {"b": 1, "a": 1, "c": 0}),
        (5, {"a": 0.0, "b": 0.0}, {"a": 9, "b": 9}, {"a": 3, "b": 2}),
        (5, {"a": 1.0, "b": 0.0, "c": 0.0}, {"a": 2, "b": 9, "c": 9}, {"a": 2, "b": 2, "c": 1}),
        (7, {"a": 1.0, "b": 0.0}, {"a": 0, "b": 9}, {"a": 0, "b": 7}),
        (12, {"a": 8.0, "b": 3.0, "c": 1.0}, {"a": 4, "b": 5, "c": 9}, {"a": 4, "b": 5, "c": 3}),
        (0, {}, {}, {}),
    ],
    ids=["ties to the earlier", "no shares are equal shares", "rest to the shareless", "no room", "two full", "empty"],
)
def test_small_cases_by_hand(total, share, room, expected):
    assert apportion(total, share, room) == expected


@pytest.mark.parametrize(
    ("total", "share", "room", "message"),
    [
        (5, {"a": 1.0}, {"a": 4}, "room for 0 to 4"),
        (-1, {"a": 1.0}, {"a": 4}, "cannot hand out -1"),
        (1, {"a": 1.0}, {"b": 4}, "differ"),
        (1, {"a": -1.0}, {"a": 4}, "finite and not negative"),
        (1, {"a": float("nan")}, {"a": 4}, "finite and not negative"),
        (1, {"a": float("inf")}, {"a": 4}, "finite and not negative"),
    ],
)
def test_what_cannot_be_handed_out_is_an_error(total, share, room, message):
    with pytest.raises(ValueError, match=message):
        apportion(total, share, room)
