import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow import Entries


def entries(index, **fields):
    index = torch.tensor(index, dtype=torch.int64)
    return Entries(index, index * 1.0, **fields)


@given(st.lists(st.tuples(st.integers(0, 99), st.booleans()), unique_by=lambda pair: pair[0]))
def test_join_is_the_one_after_the_other(pairs):
    left, right = (sorted(i for i, is_left in pairs if is_left is side) for side in (True, False))
    joined = entries(left, grad=torch.tensor(left) * -1.0).join(entries(right, grad=torch.tensor(right) * -1.0))
    assert joined.index.tolist() == left + right
    assert torch.equal(joined.weight, joined.index * 1.0)
    assert torch.equal(joined.grad, joined.index * -1.0)


def test_joined_entries_are_entries():
    joined = (
        entries([3, 5], grad=torch.ones(2))
        .join(entries([8, 9], grad=torch.zeros(2)))
        .join(entries([1], grad=torch.full((1,), 7.0)))
    )
    assert len(joined) == 5
    assert joined.index_at(torch.tensor([1, 2, 4])).tolist() == [5, 8, 1]
    seeded = joined.with_generator(torch.Generator().manual_seed(0))
    assert len(seeded.noise()) == 5
    chosen = seeded.select(torch.tensor([0, 4]))
    assert chosen.index.tolist() == [3, 1]
    assert chosen.grad.tolist() == [1, 7]


def test_join_keeps_only_what_both_hold():
    joined = entries([1], grad=torch.ones(1)).join(entries([0]))
    with pytest.raises(ValueError, match="hold no gradient"):
        _ = joined.grad


@pytest.mark.parametrize("chosen", [[0, 2], [True, False, True]])
def test_select_takes_places_or_a_mask(chosen):
    selected = entries([3, 5, 8], momentum=torch.tensor([1.0, 2.0, 3.0])).select(torch.tensor(chosen))
    assert selected.index.tolist() == [3, 8]
    assert selected.momentum.tolist() == [1.0, 3.0]


def test_noise_is_uniform_fresh_and_the_generator_s_alone():
    drawn = [entries(list(range(1000)), generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    first, second = drawn[0].noise(), drawn[0].noise()
    assert torch.equal(first, drawn[1].noise())
    assert not torch.equal(first, second)
    assert first.dtype == torch.float64
    assert 0 <= first.min() < 0.01 < 0.99 < first.max() < 1


@pytest.mark.parametrize("field", ["grad", "momentum"])
def test_what_is_not_held_says_what_to_name_in_needs(field):
    with pytest.raises(ValueError, match="in the recipe's `needs`"):
        getattr(entries([1]), field)


@pytest.mark.parametrize("field", ["weight", "grad", "momentum"])
def test_fields_of_another_length_are_an_error(field):
    fields = {"weight": torch.zeros(2), field: torch.zeros(3)}
    with pytest.raises(ValueError, match="equal length"):
        Entries(torch.tensor([0, 1]), **fields)
