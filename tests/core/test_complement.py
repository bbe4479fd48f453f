"""Entries made when they are asked for are the same as entries made at once."""

import pytest
import torch

from regrow.core.entries import Entries
from regrow.core.positions import absent, leave_out, where
from regrow.core.units import Units

NUMEL = 50


def both(density, dtype=torch.float32, with_more=True, **fields):
    """Return the absent positions of a layer as a complement and as plain entries, with some joined if asked for."""
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(NUMEL, generator=generator)[: round(density * NUMEL)]
    exists, dense = order.sort().values, torch.randn(NUMEL, generator=generator).to(dtype)
    # What was dropped is behind the rest, in an order of its own.
    dropped = Entries(
        order[: len(order) // 2],
        dense[order[: len(order) // 2]],
        **{f: dense[order[: len(order) // 2]] for f in fields},
    )
    positions = absent(exists, NUMEL)
    lazy = Entries.absent(Units((NUMEL,)), exists, dense.new_zeros(()), **{f: lambda: dense for f in fields})
    plain = Entries(positions, dense.new_zeros(len(positions)), **dict.fromkeys(fields, dense[positions]))
    seeded = [one.with_generator(torch.Generator().manual_seed(2)) for one in (lazy, plain)]
    return [one.join(dropped) for one in seeded] if with_more else seeded


@pytest.mark.parametrize("with_more", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("density", [0, 0.3, 1])
def test_all_that_entries_have_is_the_same(density, dtype, with_more):
    lazy, plain = both(density, dtype, with_more, grad=True, momentum=True)
    assert len(lazy) == len(plain)
    assert torch.equal(lazy.index_at(torch.arange(len(plain))[::2]), plain.index[::2])
    for name in ("index", "weight", "grad", "momentum"):
        assert torch.equal(getattr(lazy, name), getattr(plain, name)), name
    assert torch.equal(lazy.noise(), plain.noise())
    chosen = torch.arange(len(plain))[::3]
    left, right = lazy.select(chosen), plain.select(chosen)
    assert torch.equal(left.index, right.index)
    assert torch.equal(left.momentum, right.momentum)
    assert torch.equal(lazy.join(right).grad, plain.join(right).grad)


def test_what_it_does_not_hold_says_what_to_name_in_needs():
    lazy, _ = both(0.3, grad=True)
    assert lazy.holds_grad
    assert not lazy.holds_momentum
    with pytest.raises(ValueError, match="hold no momentum"):
        _ = lazy.momentum


def test_nothing_is_made_before_it_is_asked_for():
    def fail():
        raise AssertionError

    lazy = Entries.absent(
        Units((9,)), torch.tensor([3]), torch.zeros(()), grad=fail, momentum=lambda: torch.arange(9.0)
    )
    assert lazy.momentum.tolist() == [0, 1, 2, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("at_once", [3, 7, 50])
def test_numbers_are_left_out_part_by_part(at_once, monkeypatch):
    monkeypatch.setattr("regrow.core.positions._AT_ONCE", at_once)
    numbers, index = torch.randn(20), torch.tensor([0, 2, 3, 4, 5, 13, 19])
    assert torch.equal(leave_out(numbers, index, room=2)[:-2], numbers[absent(index, 20)])


def test_where_is_nonzero():
    mask = torch.rand(100) < 0.3
    assert torch.equal(where(mask), mask.nonzero().squeeze(1))
