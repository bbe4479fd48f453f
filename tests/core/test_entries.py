import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from regrow import Entries
from regrow.core.units import Units


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
def test_select_takes_numbers_or_a_mask(chosen):
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


def test_tensors_may_be_functions_that_are_called_once_when_first_read():
    calls = []

    def making(name, tensor):
        return lambda: calls.append(name) or tensor

    index = torch.tensor([3, 5, 8])
    made = Entries(index, making("weight", index * 1.0), making("grad", index * 2.0), making("momentum", index * 3.0))
    seeded = made.with_generator(torch.Generator().manual_seed(0))
    assert (len(made), made.holds_grad, calls) == (3, True, [])
    chosen, joined = seeded.select(torch.tensor([2])), seeded.join(made.select(torch.tensor([0])))
    assert calls == []
    assert (chosen.grad.tolist(), joined.grad.tolist(), calls) == ([16], [6, 10, 16, 6], ["grad"])
    assert made.weight is made.weight is seeded.weight
    assert calls == ["grad", "weight"]
    assert len(Entries(lambda: index, lambda: index * 1.0)) == 3


def test_a_tensor_of_another_length_is_an_error_when_it_is_made():
    made = Entries(torch.tensor([3, 5]), lambda: torch.zeros(3))
    with pytest.raises(ValueError, match=r"weight has shape \(3,\), but there are 2 entries: [^\n]*equal length"):
        _ = made.weight


LAYERS = [
    ((50,), (1, 1)),
    ((6, 8), (1, 1)),
    ((6, 8), (2, 1)),
    ((8, 6), (4, 1)),
    ((5, 8, 3), (1, 4)),
    ((4, 6, 2), (2, 2)),
]


def all_absent(shape, unit, density, dtype=torch.float32, with_more=True, fields=()):
    """Return all absent weights of a layer cut from dense tensors, and the same as plain entries; with some joined."""
    units = Units(shape, unit)
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(units.count, generator=generator)[: round(density * units.count)]
    exists, dense = order.sort().values, torch.randn(units.numel, generator=generator).to(dtype)
    # What was dropped is behind the rest, in an order of its own.
    dropped = units.positions_of(order[: len(order) // 2])
    behind = Entries(dropped, dense[dropped], **dict.fromkeys(fields, dense[dropped]))
    blocks = reference.units_of(shape, unit)
    free = [i for number, block in enumerate(blocks) if number not in exists.tolist() for i in block]
    positions = torch.tensor(free, dtype=torch.int64)
    cut = Entries.absent(units, exists, dense.new_zeros(()), **{field: lambda: dense for field in fields})
    plain = Entries(positions, dense.new_zeros(len(positions)), **dict.fromkeys(fields, dense[positions]))
    seeded = [one.with_generator(torch.Generator().manual_seed(2)) for one in (cut, plain)]
    return [one.join(behind) for one in seeded] if with_more else seeded


@pytest.mark.parametrize("with_more", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("density", [0, 0.3, 1])
@pytest.mark.parametrize(("shape", "unit"), LAYERS)
def test_absent_weights_are_those_that_plain_entries_would_hold(shape, unit, density, dtype, with_more):
    cut, plain = all_absent(shape, unit, density, dtype, with_more, ("grad", "momentum"))
    assert len(cut) == len(plain)
    assert torch.equal(cut.index_at(torch.arange(len(plain))[::2]), plain.index[::2])
    for name in ("index", "weight", "grad", "momentum"):
        assert torch.equal(getattr(cut, name), getattr(plain, name)), name
    assert torch.equal(cut.noise(), plain.noise())
    chosen = torch.arange(len(plain))[::3]
    left, right = cut.select(chosen), plain.select(chosen)
    assert torch.equal(left.index, right.index)
    assert torch.equal(left.momentum, right.momentum)
    assert torch.equal(cut.join(right).grad, plain.join(right).grad)


def test_absent_weights_say_what_to_name_in_needs():
    cut, _ = all_absent((50,), (1, 1), 0.3, fields=["grad"])
    assert cut.holds_grad
    assert not cut.holds_momentum
    with pytest.raises(ValueError, match="hold no momentum"):
        _ = cut.momentum


@pytest.mark.parametrize("more", [0, 5])
def test_of_absent_weights_nothing_is_made_but_what_is_read(more):
    def fail():
        raise AssertionError

    numel = 100_000
    dense, exists = torch.arange(1.0 * numel), torch.tensor([3, 7, 8, 11, 12])
    cut = Entries.absent(Units((numel,)), exists, torch.zeros(()), grad=fail, momentum=lambda: dense)
    behind = exists[:more]
    joined = cut.join(Entries(behind, torch.zeros(more), momentum=dense[behind]))
    with torch.profiler.profile(profile_memory=True) as profile:
        numbers = joined.momentum
        positions = joined.index_at(torch.tensor([0, 3, numel - 6]))
    assert len(numbers) == numel - 5 + more
    assert positions.tolist() == [0, 4, numel - 1]
    # the momentum once, and masks of a byte a position on the way: positions would take 8 bytes each
    assert max(event.self_cpu_memory_usage for event in profile.events()) <= 4 * numel
    made = [event for event in profile.events() if event.self_cpu_memory_usage >= 2 * numel]
    assert len(made) == 1
