"""Checks of what operators are given: an exported program may bring any tensor, and kernels believe what they get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from regrow.ops.native import kernels

__all__ = ["check_activation", "check_index", "check_places", "check_tensor", "check_that"]

_NAMES = ("order", "offset", "segment_row", "segment_start", "block_start", "blocking")
# Index structures that were found right: by `order`, with the others, what they have to fit, and their versions.
_right: WeakIdKeyDictionary = WeakIdKeyDictionary()


def check_that(condition: object, message: str) -> None:
    """Raise a ValueError unless a condition holds."""
    if not condition:
        raise ValueError(message)


def check_tensor(
    name: str, tensor: Tensor | None, shape: Sequence[int] | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Raise a ValueError if a tensor has another shape or type, or is not on the CPU; None passes."""
    if tensor is None:
        return
    if tensor.dtype is not dtype or tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        raise ValueError(
            f"{name} must be a dense {dtype} tensor on the CPU, not {tensor.dtype} {tensor.layout} on {tensor.device}"
        )
    if shape is not None and tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, not {tuple(tensor.shape)}")


def check_activation(
    name: str, tensor: Tensor | None, shape: Sequence[int] | None = None, like: Tensor | None = None
) -> None:
    """Raise a ValueError if a tensor cannot be an activation of some shape, of the type of another; None passes."""
    if tensor is not None:
        given = tensor if like is None else like
        check_tensor(name, tensor, shape, torch.bfloat16 if given.dtype is torch.bfloat16 else torch.float32)


def check_index(
    index: Sequence[Tensor], *, rows: int, channels: int, taps: int, nonzeros: int | None, phase: Tensor | None = None,
    phases: int = 1,
) -> None:  # fmt: skip
    """Raise a ValueError unless a kernel may have an index structure.

    Time is linear in its size, once: the same tensors with the same contents are not looked at again.

    Args:
        index: as the `Blocks` of a pattern.
        rows: output channels of its direction.
        channels: input channels of its direction, of all groups.
        taps: height times width of the kernel.
        nonzeros: how many weights are active; None is as many as `order` has.
        phase: which phase of the output each tap belongs to, int32; None where there is one.
        phases: how many phases the output has.
    """
    check_that(len(index) == len(_NAMES), f"an index has {len(_NAMES)} tensors ({', '.join(_NAMES)}), not {len(index)}")
    for name, tensor in zip(_NAMES, index, strict=True):
        check_tensor(f"{name} of the index", tensor, dtype=torch.int16 if name == "offset" else torch.int32)
        check_that(tensor.dim() == 1 and tensor.is_contiguous(), f"{name} of the index must be a contiguous 1-D tensor")
    order, *others, blocking = index
    versions = tuple(-1 if tensor.is_inference() else tensor._version for tensor in index)
    fits = (versions, rows, channels, taps, nonzeros, phases, None if phase is None else tuple(phase.tolist()))
    known = _right[order] if order in _right else None  # noqa: SIM401 - its get() takes no default
    if known is not None and known[0] == fits and -1 not in versions and all(map(_is, known[1], index[1:])):
        return
    check_that(
        len(blocking) == 3,
        "blocking of the index must be three numbers: channels of a block, the driver, and the rows of an entry",
    )
    per_block, sweep, unit = blocking.tolist()
    # offsets have 16 bits
    most = max(1, min(channels, (1 << 15) // max(1, taps)))
    check_that(
        1 <= per_block <= most, f"a block of the index must have 1 to {most} of {channels} channels, not {per_block}"
    )
    check_that(sweep in (0, 1), f"the driver of the index must be 0 or 1, not {sweep}")
    check_that(unit in (1, 2, 4, 8), f"an entry of the index must have 1, 2, 4 or 8 rows, not {unit}")
    sizes: list[int] = []
    for tensor in (order, *others):
        sizes += (tensor.data_ptr(), len(tensor))
    fault: str = kernels().check_index(
        *sizes, len(order) * unit if nonzeros is None else nonzeros, rows, channels, per_block, taps,
        0 if phase is None else phase.data_ptr(), phases, unit,
    )  # fmt: skip
    check_that(not fault, f"the index does not fit: {fault}")
    _right[order] = (fits, tuple(index[1:]))


def check_places(places: Sequence[Tensor], *, within: int, nonzeros: int | None) -> None:
    """Raise a ValueError unless these are the places of values among those that kernels compute with, or nothing.

    Args:
        places: one tensor or none.
        within: how many values kernels compute with.
        nonzeros: how many values there are; None is as many as places.
    """
    if not places:
        return
    check_that(len(places) == 1, f"an index has one tensor of places at most, not {len(places)}")
    check_tensor("places of the index", places[0], None if nonzeros is None else (nonzeros,), torch.int32)
    ascending = torch.diff(places[0], prepend=places[0].new_tensor([-1]), append=places[0].new_tensor([within])) > 0
    check_that(
        places[0].dim() == 1 and bool(ascending.all()), f"places of the index must ascend from 0 to {within - 1}"
    )


def _is(one: Any, other: Any) -> bool:
    return one is other
