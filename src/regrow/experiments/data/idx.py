"""The IDX format of MNIST and its relatives: a big-endian header, then the bytes; plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regrow.experiments.data.digests import verify
from regrow.experiments.data.registry import Dataset
from regrow.experiments.errors import UserError

__all__ = ["content", "parse", "present", "read"]


_MOST_BYTES = 1 << 27
"""More than any file of these data sets has, so that a small file cannot fill the memory."""


def present(folder: Path, name: str) -> Path | None:
    """The file called `name` (without .gz) in `folder`, plain or gzipped; None if there is neither."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def content(path: Path) -> bytes:
    """The decompressed bytes of a plain or gzipped file.

    Raises:
        UserError: if it cannot be read or decompressed.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            raw = stream.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it and fetch it again") from error
    if len(raw) > _MOST_BYTES:
        raise UserError(f"{path} holds more than {_MOST_BYTES} bytes, so it is another file; fetch it again")
    return raw


def parse(raw: bytes, path: Path) -> NDArray[np.uint8]:
    """The array in the bytes of an IDX file.

    >>> parse(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), Path("labels")).tolist()
    [7, 9]

    Raises:
        UserError: if they are not IDX of unsigned bytes, or longer or shorter than their header says.
    """
    header = 4 + 4 * raw[3] if len(raw) >= 4 else 4
    if len(raw) < header or raw[:3] != b"\x00\x00\x08":
        raise UserError(f"{path} is not an IDX file of unsigned bytes; fetch it again")
    shape = tuple(np.frombuffer(raw, ">u4", offset=4, count=raw[3]).astype(int).tolist())
    if len(raw) - header != int(np.prod(shape)):
        raise UserError(f"{path} holds {len(raw) - header} bytes where its header promises {shape}; fetch it again")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def read(folder: Path, dataset: Dataset, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 1, H, W) and labels (N,) of a split, "train" or "test", their digests verified.

    Raises:
        UserError: if a file is missing, unreadable or damaged.
    """
    prefix = "train" if split == "train" else "t10k"
    images, labels = (
        _array(folder, f"{prefix}-{kind}", dataset) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    if len(images) != len(labels):
        raise UserError(f"{folder} has {len(images)} {prefix} images but {len(labels)} labels; fetch it again")
    return images[:, None], labels.astype(np.int64)


def _array(folder: Path, name: str, dataset: Dataset) -> NDArray[np.uint8]:
    path = present(folder, name)
    if path is None:
        raise UserError(f"{folder} lacks {name} (or {name}.gz); fetch it again")
    raw = content(path)
    verify(raw, dataset.digests[name], path)
    return parse(raw, path)
