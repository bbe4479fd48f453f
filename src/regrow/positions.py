"""Sets of flat positions of a dense weight, as sorted int64 tensors: look-up, complement and random draws.

Nothing here is as large as the dense weight, unless as many positions are asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
        positions: flat positions, int64, shape (n,).
        index: sorted distinct flat positions, int64.

    Returns:
        The place of each position in `index`, int64, shape (n,), and whether it is there at all, bool, shape (n,);
        the place of one that is not there is any valid one.

    Example:
        >>> find(torch.tensor([3, 4]), torch.tensor([1, 3, 7]))
        (tensor([1, 2]), tensor([ True, False]))
    """
    place = torch.searchsorted(index, positions)
    if not len(index):
        return place, torch.zeros_like(positions, dtype=torch.bool)
    place = place.clamp_(max=len(index) - 1)
    return place, index[place] == positions


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
    place, found = find(positions, index)
    return numbers[place].masked_fill_(~found, 0)


def absent(index: Tensor, numel: int) -> Tensor:
    """Return the positions below `numel` that are not in the sorted `index`, sorted.

    Example:
        >>> absent(torch.tensor([1, 3]), numel=5)
        tensor([0, 2, 4])
    """
    return _of_ranks(torch.arange(numel - len(index), device=index.device), index)


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
    return _of_ranks(_draw(total, count, generator).to(index.device), index)


def _of_ranks(ranks: Tensor, index: Tensor) -> Tensor:
    """Return the absent positions with these ranks among all absent ones."""
    # Before the i-th existing position there are index[i] - i absent ones.
    absent_before = index - torch.arange(len(index), device=index.device)
    return ranks + torch.searchsorted(absent_before, ranks, right=True)


def _draw(total: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` distinct numbers below `total`, sorted."""
    if 2 * count >= total:
        return torch.randperm(total, generator=generator)[:count].sort().values
    drawn = torch.empty(0, dtype=torch.int64)
    while len(drawn) < count:
        # Those drawn twice count once, so more are drawn than are missing.
        more = torch.randint(total, (2 * (count - len(drawn)) + 16,), generator=generator)
        drawn = torch.unique(torch.cat((drawn, more)))
    return drawn[torch.randperm(len(drawn), generator=generator)[:count]].sort().values
