import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow.core.positions import absent, chosen, draw_absent, find, leave_out, lookup, where


@st.composite
def sets(draw):
    """Draw a number of positions and some of them, sorted."""
    numel = draw(st.integers(0, 40))
    members = draw(st.sets(st.integers(0, numel - 1))) if numel else set()
    return numel, torch.tensor(sorted(members), dtype=torch.int64)


@given(sets(), sets())
def test_what_is_looked_up_is_found_where_it_stands(wanted, there):
    (_, positions), (_, index) = wanted, there
    numbers = torch.arange(1, len(index) + 1).float()
    slot, found = find(positions, index)
    expected = {int(position): i for i, position in enumerate(index)}
    assert found.tolist() == [int(p) in expected for p in positions]
    assert slot[found].tolist() == [expected[int(p)] for p in positions if int(p) in expected]
    assert lookup(positions, index, numbers).tolist() == [expected.get(int(p), -1) + 1 for p in positions]


@given(sets())
def test_absent_is_all_the_rest(there):
    numel, index = there
    assert absent(index, numel).tolist() == sorted(set(range(numel)) - set(index.tolist()))


@given(sets(), st.integers(0, 50), st.integers(0, 1000))
def test_drawn_positions_are_absent_distinct_sorted_and_as_many_as_wanted(there, count, seed):
    numel, index = there
    drawn = draw_absent(index, numel, count, torch.Generator().manual_seed(seed)).tolist()
    assert drawn == sorted(set(drawn))
    assert not set(drawn) & set(index.tolist())
    assert set(drawn) <= set(range(numel))
    assert len(drawn) == min(count, numel - len(index))


@pytest.mark.parametrize("count", [3, 20])  # few of many, and most of all
def test_every_absent_position_is_drawn_as_often(count):
    index, numel, draws = torch.arange(5, 30, 3), 33, 3000
    generator = torch.Generator().manual_seed(0)
    times = torch.zeros(numel)
    for _ in range(draws):
        times[draw_absent(index, numel, count, generator)] += 1
    expected = draws * count / (numel - len(index))
    share = times[absent(index, numel)] / expected
    assert not times[index].any()
    # five standard deviations of a binomial count
    assert (share - 1).abs().max() < 5 / expected**0.5


def test_few_of_very_many_are_drawn_without_listing_all():
    drawn = draw_absent(torch.tensor([7]), 2**50, 1000, torch.Generator().manual_seed(0))
    assert len(drawn) == 1000
    assert drawn.max() > 2**48


@pytest.mark.parametrize("at_once", [3, 7, 50])
@pytest.mark.parametrize("size", [1, 4])
def test_numbers_are_left_out_part_by_part(size, at_once, monkeypatch):
    monkeypatch.setattr("regrow.core.positions._AT_ONCE", at_once)
    numbers, index = torch.randn(20 * size), torch.tensor([0, 2, 3, 4, 5, 13, 19])
    left = leave_out(numbers, index, room=2, size=size)
    assert torch.equal(left[:-2], numbers.view(20, size)[absent(index, 20)].flatten())


def test_where_is_nonzero():
    mask = torch.rand(100) < 0.3
    assert torch.equal(where(mask), mask.nonzero().squeeze(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 1), (0, 4), (6, 0)], ids=str)
def test_chosen_is_what_the_mask_takes(shape, dtype):
    numbers = torch.arange(24.0)[: torch.Size(shape).numel()].view(shape).to(dtype)
    turned = numbers.T.contiguous().T
    for share in (0.0, 0.5, 1.0):
        mask = torch.arange(shape[0]) < share * shape[0]
        for each in (numbers, turned):
            assert torch.equal(chosen(each, mask), each[mask])
            assert chosen(each, mask).dtype is dtype
