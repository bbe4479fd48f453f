"""Positions in few bits: what is packed comes back, in little more than its entropy, and bytes give nothing else."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow.files.packing import pack, unpack


def drawn(below, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(below, generator=generator)[:count].sort().values


@given(st.sets(st.integers(0, 5000)), st.integers(1, 100))
def test_what_is_packed_comes_back(numbers, beyond):
    numbers = torch.tensor(sorted(numbers), dtype=torch.int64)
    below = (int(numbers[-1]) if len(numbers) else 0) + beyond
    bits, packed = pack(numbers)
    assert torch.equal(unpack(packed, bits, len(numbers), below), numbers)


def test_numbers_that_are_far_apart_come_back():
    numbers = torch.tensor([0, 1, 1 << 40, (1 << 50) - 1])
    bits, packed = pack(numbers)
    assert torch.equal(unpack(packed, bits, 4, 1 << 50), numbers)


@pytest.mark.parametrize("density", [0.001, 0.01, 0.05, 0.2, 0.5])
def test_random_positions_take_little_more_than_their_entropy(density):
    below = 1_000_000
    count = round(density * below)
    entropy = -(density * math.log2(density) + (1 - density) * math.log2(1 - density)) * below / count
    _, packed = pack(drawn(below, count))
    assert 0.999 * entropy < 8 * len(packed) / count < 1.04 * entropy


def test_where_all_exist_it_is_a_bitmap():
    bits, packed = pack(torch.arange(800))
    assert (bits, len(packed)) == (0, 100)


@given(st.binary(max_size=40), st.integers(0, 12), st.integers(0, 60), st.integers(0, 400))
def test_whatever_the_bytes_are_numbers_are_sorted_distinct_and_within(content, bits, count, below):
    try:
        numbers = unpack(torch.tensor(list(content), dtype=torch.uint8), bits, count, below)
    except ValueError:
        return
    assert len(numbers) == count
    assert bool((numbers.diff() > 0).all())
    assert not count or (numbers[0] >= 0 and numbers[-1] < below)


@pytest.mark.parametrize(
    ("bits", "count", "below"),
    [(0, 10, 60), (0, 9, 61), (0, 11, 61), (-1, 10, 61), (1, 10, 61), (70, 10, 61), (0, -1, 61), (0, 10, 1 << 63)],
)
def test_bytes_of_other_numbers_are_refused(bits, count, below):
    numbers = torch.tensor([0, 3, 4, 9, 10, 11, 30, 31, 32, 60])
    chosen, packed = pack(numbers)
    assert chosen > 1
    with pytest.raises(ValueError, match=r"positions|places"):
        unpack(packed, bits, count, below)


def test_what_are_no_bytes_is_refused():
    for packed in (torch.zeros(2), torch.zeros(2, 2, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="bytes of one dimension"):
            unpack(packed, 0, 0, 8)
