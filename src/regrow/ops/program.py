"""What holds a program that was exported or traced to the positions that it was made for.

Index structures are constants of a program, and positions are in its state: another state may be loaded into it, whose
values would then stand at positions that are not theirs.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from regrow.ops.check import check_that

__all__ = ["checksum", "values_at"]

# Checksums of positions: by the tensor, with its version.
_known: WeakIdKeyDictionary = WeakIdKeyDictionary()


def checksum(positions: Tensor) -> int:
    """Return the CRC-32 of positions."""
    return zlib.crc32(positions.detach().cpu().contiguous().numpy().data)


@torch.library.custom_op("regrow::values_at", mutates_args=())
def values_at(values: Tensor, positions: Tensor, expected: int) -> Tensor:
    """Return a copy of values, if their positions are those of a program.

    Args:
        values: the weights that exist.
        positions: where they stand, as the state of the program has them.
        expected: the checksum of the positions of which the program's constants were made.

    Raises:
        ValueError: if the positions are others.
    """
    version = -1 if positions.is_inference() else positions._version
    known = _known[positions] if positions in _known else None  # noqa: SIM401 - its get() takes no default
    if known is None or known[0] != version or version == -1:
        known = _known[positions] = (version, checksum(positions))
    check_that(
        known[1] == expected,
        "the state of another model was loaded into an exported program, whose positions are constants: load it into "
        "the model and export that again",
    )
    return values.clone()


@values_at.register_fake
def _(values: Tensor, positions: Tensor, expected: int) -> Tensor:
    return torch.empty_like(values)


def _backward(_: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return gradient, None, None


values_at.register_autograd(_backward)
