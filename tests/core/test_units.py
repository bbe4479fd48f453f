"""Units by number, beside the blocks that the reference lists."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from regrow.core.growth import candidates, exact, wanted
from regrow.core.units import Units, fitting_unit

ASKED = st.sampled_from([(1, 1), (2, 1), (4, 1), (1, 4), (2, 2), (3, 2)])
SHAPES = st.lists(st.integers(1, 8), min_size=1, max_size=4).map(tuple)


@st.composite
def unit_sets(draw):
    """Draw units of a weight, and some of their numbers, sorted."""
    shape = draw(SHAPES)
    units = Units(shape, fitting_unit((shape[0], shape[1] if len(shape) > 1 else 1), draw(ASKED)))
    numbers = draw(st.sets(st.integers(0, units.count - 1), max_size=30))
    return units, torch.tensor(sorted(numbers), dtype=torch.int64)


@given(unit_sets())
def test_numbers_and_positions_are_those_of_the_blocks(drawn):
    units, numbers = drawn
    blocks = reference.units_of(units.shape, units.unit)
    assert (units.count, units.size, units.numel) == (len(blocks), len(blocks[0]), math.prod(units.shape))
    positions = units.positions_of(numbers)
    assert positions.tolist() == [i for number in numbers for i in blocks[number]]
    assert torch.equal(units.numbers_of(positions.sort().values), numbers)


@given(unit_sets())
def test_dense_numbers_are_arranged_as_the_blocks_are(drawn):
    units, _ = drawn
    dense = torch.arange(units.numel)
    arranged = units.arrange(dense)
    assert arranged.tolist() == [i for block in reference.units_of(units.shape, units.unit) for i in block]
    assert (arranged is dense) is (units.size == 1)


@given(unit_sets(), st.data())
def test_part_of_a_unit_is_an_error(drawn, data):
    units, numbers = drawn
    if units.size == 1 or not len(numbers):
        return
    positions = units.positions_of(numbers).sort().values
    left = data.draw(st.integers(0, len(positions) - 1))
    with pytest.raises(ValueError, match=r"no whole units of [^\n]* give all weights of a unit or none"):
        units.numbers_of(torch.cat((positions[:left], positions[left + 1 :])))


@given(SHAPES, ASKED)
def test_the_largest_divisors_fit(shape, asked):
    sides = shape[0], shape[1] if len(shape) > 1 else 1
    expected = tuple(
        max(d for d in range(1, most + 1) if side % d == 0) for side, most in zip(sides, asked, strict=True)
    )
    assert fitting_unit(sides, asked) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Units((6, 4), (4, 1)), r"\(4, 1\) do not divide \(6, 4\) outputs and inputs: take fitting_unit"),
        (lambda: Units((6,), (1, 2)), r"do not divide \(6, 1\)"),
        (lambda: Units((6, 4), (0, 1)), "do not divide"),
        (lambda: Units(()), "at least one dimension"),
        (lambda: fitting_unit((6, 4), (0, 1)), "at least one output and one input"),
    ],
)
def test_units_that_cannot_be_are_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@given(unit_sets(), st.floats(0.1, 3))
def test_candidates_are_drawn_in_whole_units(drawn, per_nonzero):
    units, numbers = drawn
    index = units.positions_of(numbers).sort().values
    generator = torch.Generator().manual_seed(0)
    found = wanted(candidates(1, per_nonzero), index, units, generator).tolist()
    assert found == sorted(set(found) - set(numbers.tolist()))
    assert len(found) == min(max(1, round(per_nonzero * len(numbers))), units.count - len(numbers))
    assert wanted(exact(), index, units, generator) is None
