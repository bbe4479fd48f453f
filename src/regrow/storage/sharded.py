"""Parameters that `fully_shard` splits over processes: read whole, written part by part.

A mask is whole in every process. So are the numbers that an update reads; every process must ask for them then.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

__all__ = ["group_of", "own", "own_part", "whole", "write"]


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole, gathered from all processes if it is split."""
    full: Tensor = tensor.full_tensor() if _is_split(tensor) else tensor  # type: ignore[attr-defined]
    return full


def own(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, in its memory; all of one that is not split."""
    part: Tensor = tensor.detach().to_local() if _is_split(tensor) else tensor  # type: ignore[attr-defined]
    return part


def own_part(full: Tensor, like: Tensor) -> Tensor:
    """Return of a whole tensor what `own` returns of another of its shape."""
    if not _is_split(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    split = distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
    return split.to_local()


@torch.no_grad()
def write(tensor: Tensor, into: Callable[[Tensor], object]) -> None:
    """Let a function write into a tensor in place; into one that is split as if it were whole."""
    full = whole(tensor)
    into(full)
    if _is_split(tensor):
        own(tensor).copy_(own_part(full, tensor))


def group_of(tensor: Tensor) -> ProcessGroup | None:
    """Return the processes over which a tensor is split; None if it is not."""
    group: ProcessGroup | None = tensor.device_mesh.get_group(0) if _is_split(tensor) else None  # type: ignore[attr-defined]
    return group


def _is_split(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, whose class takes a moment to import."""
    return hasattr(tensor, "device_mesh")
