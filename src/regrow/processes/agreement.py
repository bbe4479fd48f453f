"""Numbers that processes compare and add up."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["add_up", "differing", "digest"]


def digest(tensor: Tensor) -> int:
    """Return a number of 63 bits that equal tensors share, and others but for one case in 2 ** 63 do not.

    Example:
        >>> digest(torch.tensor([1, 5])) == digest(torch.tensor([1, 6]))
        False
    """
    numbers = tensor.detach().cpu().contiguous().numpy()
    return int.from_bytes(hashlib.blake2b(numbers.data, digest_size=8).digest(), "little") >> 1


def differing(group: ProcessGroup, device: torch.device, own: Mapping[str, int]) -> dict[str, list[int]]:
    """Return which of some numbers differ between processes, and the ranks that have others than rank 0.

    Every process of the group must call it, and gets the same answer.

    Args:
        group: the processes.
        device: where the group sends tensors from.
        own: the numbers of this process by name, in the same order in all.
    """
    sent = torch.tensor(list(own.values()), dtype=torch.int64, device=device)
    received = [torch.empty_like(sent) for _ in range(group.size())]
    distributed.all_gather(received, sent, group=group)
    of_all = torch.stack(received).tolist()
    found = {
        name: [rank for rank, numbers in enumerate(of_all) if numbers[place] != of_all[0][place]]
        for place, name in enumerate(own)
    }
    return {name: ranks for name, ranks in found.items() if ranks}


def add_up(group: ProcessGroup, device: torch.device, own: Sequence[float]) -> list[float]:
    """Return the sums of some numbers over all processes of a group; exact for whole numbers below 2 ** 53."""
    sums = torch.tensor(own, dtype=torch.float64, device=device)
    distributed.all_reduce(sums, group=group)
    numbers: list[float] = sums.tolist()
    return numbers
