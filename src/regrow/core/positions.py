"""Sets of flat positions of a dense weight, as sorted int64 tensors: look-up, complement and random draws.

Nothing here is as large as the dense weight, unless as many positions are asked for.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "absent",
    "chosen",
    "compact",
    "draw_absent",
    "draw_pairs",
    "find",
    "leave_out",
    "lookup",
    "of_ranks",
    "where",
]

_IN_NUMPY = (torch.float16, torch.float32, torch.float64)

# Below this many numbers a permutation of all is quicker.
_FEW = 256
# Times that pairs are drawn, twice as many as are still wanted, before the rest are drawn evenly.
_ROUNDS = 16
# Numbers drawn, or moved, at a time.
_AT_ONCE = 1 << 20


def compact(index: Tensor, numel: int) -> Tensor:
    """Return positions below `numel` in the smallest type that holds them: int32 or int64.

    Example:
        >>> compact(torch.tensor([3, 5]), numel=10).dtype
        torch.int32
    """
    return index.to(torch.int32 if numel <= torch.iinfo(torch.int32).max else torch.int64)


def find(positions: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Look up `positions` in the sorted `index`.

    Args:
        positions: flat positions, shape (n,).
        index: sorted distinct flat positions of the same dtype.

    Returns:
        The slot of each position in `index`, int64, shape (n,), and whether it is there at all, bool, shape (n,);
        the slot of one that is not there is any valid one.

    Example:
        >>> find(torch.tensor([3, 4]), torch.tensor([1, 3, 7]))
        (tensor([1, 2]), tensor([ True, False]))
    """
    slot = torch.searchsorted(index, positions)
    if not len(index):
        return slot, torch.zeros_like(positions, dtype=torch.bool)
    slot = slot.clamp_(max=len(index) - 1)
    return slot, index[slot] == positions


def lookup(positions: Tensor, index: Tensor, numbers: Tensor) -> Tensor:
    """Return the number that stands at each of `positions`; zero where `index` has none.

    Args:
        positions: flat positions, int64, shape (n,).
        index: sorted distinct flat positions, int64, shape (m,).
        numbers: one number for each position of `index`, shape (m,).

    Example:
        >>> lookup(torch.tensor([3, 4]), torch.tensor([1, 3, 7]), torch.tensor([0.5, 2.0, 4.0]))
        tensor([2., 0.])
    """
    if not len(index):
        return numbers.new_zeros(len(positions))
    slot, found = find(positions, index)
    return numbers[slot].masked_fill_(~found, 0)


def absent(index: Tensor, numel: int) -> Tensor:
    """Return the positions below `numel` that are not in the sorted `index`, sorted.

    Example:
        >>> absent(torch.tensor([1, 3]), numel=5)
        tensor([0, 2, 4])
    """
    return of_ranks(torch.arange(numel - len(index), device=index.device), index)


def leave_out(numbers: Tensor, index: Tensor, room: int = 0, size: int = 1) -> Tensor:
    """Return numbers of all positions without those at the sorted `index`, and room for some more behind them.

    Args:
        numbers: `size` numbers for each position, one position after the other, shape (positions * size,).
        index: sorted distinct positions, int64.
        room: how many numbers more the result holds; what they are is left open.
        size: numbers that belong to one position: for units the weights in a unit.

    Example:
        >>> leave_out(torch.tensor([5.0, 6.0, 7.0]), torch.tensor([1]))
        tensor([5., 7.])
    """
    count = len(numbers) // size
    result = numbers.new_empty((count - len(index)) * size + room)
    starts = range(0, count, _AT_ONCE)
    bounds = torch.searchsorted(index, torch.tensor([*starts, count], device=index.device)).tolist()
    rows = numbers if size == 1 else numbers.view(count, size)
    for number, start in enumerate(starts):
        first, last = bounds[number : number + 2]
        part = rows[start : start + _AT_ONCE]
        stays = torch.ones(len(part), dtype=torch.bool, device=part.device)
        stays[index[first:last] - start] = False
        result[(start - first) * size : (start + len(part) - last) * size] = chosen(part, stays).view(-1)
    return result


def where(mask: Tensor) -> Tensor:
    """Return the ascending numbers of the elements of a 1-D bool tensor that are true, int64."""
    if mask.device.type != "cpu":
        return mask.nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def chosen(numbers: Tensor, mask: Tensor) -> Tensor:
    """Return the numbers, or the rows of numbers, where a 1-D bool tensor is true."""
    # NumPy makes no list of what is true, which would be larger than the numbers.
    if numbers.device.type != "cpu" or numbers.dtype not in _IN_NUMPY:
        return numbers[mask]
    array = numbers.detach().numpy()
    if array.ndim == 1 or not array.flags.c_contiguous or not array.size:
        return torch.from_numpy(array[mask.numpy()])
    # Rows that are single items to NumPy are copied several times as fast.
    rows = array.view(np.dtype((np.void, array.shape[1] * array.itemsize))).squeeze(1)
    return torch.from_numpy(rows[mask.numpy()].view(array.dtype).reshape(-1, array.shape[1]))


def draw_absent(index: Tensor, numel: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` distinct positions below `numel` that are not in `index`, sorted; all of them if there are fewer.

    Args:
        index: sorted distinct flat positions, int64.
        numel: number of positions there are.
        count: how many to draw.
        generator: the only source of randomness, on the CPU.

    Example:
        >>> draw_absent(torch.tensor([1, 3]), numel=5, count=9, generator=torch.Generator())
        tensor([0, 2, 4])
    """
    total = numel - len(index)
    if count >= total:
        return absent(index, numel)
    return of_ranks(_draw(total, count, generator).to(index.device), index)


def draw_pairs(index: Tensor, rows: Tensor, columns: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` distinct positions of a matrix that are not in `index`, sorted; all of them if there are fewer.

    One after the other: row and column by their weights, anew where that was drawn before or is in `index`. If few
    pairs have nearly all the weight, the rest are drawn evenly among all others. It takes time and memory that `count`,
    `index` and the sides take.

    Args:
        index: sorted distinct flat positions, int64.
        rows: weight of each row, not negative, on the CPU, shape (rows,).
        columns: likewise of each column.
        count: how many to draw.
        generator: the only source of randomness, on the CPU.

    Example:
        >>> rows, columns = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])
        >>> draw_pairs(torch.tensor([1]), rows, columns, count=1, generator=torch.Generator())
        tensor([0])
    """
    numel = len(rows) * len(columns)
    if count >= numel - len(index):
        return absent(index, numel)
    existing, found = index.cpu(), torch.empty(0, dtype=torch.int64)
    for _ in range(_ROUNDS):
        number = 2 * (count - len(found)) + 16
        row, column = (torch.multinomial(each, number, True, generator=generator) for each in (rows, columns))
        drawn = row * len(columns) + column
        drawn = drawn[~(find(drawn, existing)[1] | find(drawn, found)[1])]
        distinct, first = np.unique(drawn.numpy(), return_index=True)
        new = torch.from_numpy(distinct[first.argsort()[: count - len(found)]])
        found = torch.cat((found, new)).sort().values
        if len(found) == count:
            return found.to(index.device)
    taken = torch.cat((existing, found)).sort().values
    rest = draw_absent(taken, numel, count - len(found), generator)
    return torch.cat((found, rest)).sort().values.to(index.device)


def of_ranks(ranks: Tensor, index: Tensor) -> Tensor:
    """Return the positions with these ranks, sorted, among all that are not in the sorted `index`.

    Example:
        >>> of_ranks(torch.tensor([0, 2]), torch.tensor([1, 3]))
        tensor([0, 4])
    """
    # Before the i-th existing position there are index[i] - i absent ones; each existing position moves all those of
    # that rank and above on by one.
    absent_before = index - torch.arange(len(index), device=index.device)
    first = torch.searchsorted(ranks, absent_before)
    shift = torch.bincount(first, minlength=len(ranks) + 1)[: len(ranks)]
    return shift.cumsum_(0).add_(ranks)


def _draw(total: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` distinct numbers below `total`, sorted; every set of that size with the same probability."""
    if total <= _FEW:
        return torch.randperm(total, generator=generator)[:count].sort().values
    if 2 * count > total:
        stays = torch.ones(total, dtype=torch.bool)
        stays[_draw(total, total - count, generator)] = False
        return stays.nonzero().squeeze(1)
    drawn = torch.empty(0, dtype=torch.int64)
    while len(drawn) < count:
        # each number by itself with the same probability: a few more than wanted, nearly always
        drawn = _each_with(min(1.0, (count + 6 * count**0.5 + 16) / total), total, generator)
    # all sets of one size are as likely, and stay so when some are left out at random
    stays = torch.ones(len(drawn), dtype=torch.bool)
    stays[_draw(len(drawn), len(drawn) - count, generator)] = False
    return drawn[stays]


def _each_with(probability: float, total: int, generator: torch.Generator) -> Tensor:
    """Draw each number below `total` by itself with a probability, sorted."""
    if probability == 1:
        return torch.arange(total)
    found, last = [], -1
    while last < total:
        # from each number to the next: distributed geometrically
        count = min(int((total - last) * probability) + 16, _AT_ONCE)
        gaps = torch.empty(count, dtype=torch.float64).exponential_(generator=generator)
        gaps.div_(-math.log1p(-probability)).floor_().add_(1)
        numbers = gaps.cumsum_(0).add_(last)
        last = int(numbers[-1])
        found.append(compact(numbers.clamp_(max=total), total))
    drawn = torch.cat(found)
    return drawn[: int(torch.searchsorted(drawn, torch.tensor([total], dtype=drawn.dtype)))].long()
