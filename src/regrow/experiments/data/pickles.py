"""CIFAR-10 as its authors publish it: six Python pickles in a folder or in a tar.gz."""

from __future__ import annotations

import codecs
import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regrow.experiments.data.digests import verify, verify_file
from regrow.experiments.data.registry import Dataset
from regrow.experiments.errors import UserError

__all__ = ["ARCHIVE", "FOLDER", "TEST", "TRAIN", "folder_of", "parse", "read"]

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = ("test_batch",)

_MOST_BYTES = 1 << 28
"""What may come out of an archive at most; the published one holds 186 MB."""
_MOST_MEMBERS = 100

# Taken from a live array: the name under which NumPy keeps this function changed with version 2.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,  # how Python 3 writes bytes at protocol 2
}


class _ArraysOnly(pickle.Unpickler):
    """Builds plain values and NumPy arrays, and refuses everything else: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def folder_of(folder: Path) -> Path:
    """Where the six files would lie: in `folder` itself, or in its subfolder of the archive's name."""
    return folder / FOLDER if (folder / FOLDER).is_dir() else folder


def parse(raw: bytes, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 3, 32, 32) and labels (N,) of one batch file.

    Raises:
        UserError: if the pickle holds anything but arrays and plain values, or not what a batch holds.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(raw), encoding="latin1").load()
        images = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(batch["labels"], dtype=np.int64)
    except Exception as error:  # a malformed pickle may raise nearly anything
        raise UserError(f"{path} is no CIFAR-10 batch ({error}); fetch it again") from error
    if labels.shape != (len(images),):
        raise UserError(f"{path} has {len(images)} images but labels of shape {labels.shape}; fetch it again")
    return images, labels


def read(folder: Path, dataset: Dataset, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 3, 32, 32) and labels (N,) of a split, "train" or "test", their digests verified.

    Raises:
        UserError: if a file is missing, unreadable or damaged.
    """
    parts = []
    for path, raw in _contents(folder, TRAIN if split == "train" else TEST, dataset):
        verify(raw, dataset.digests[path.name], path)
        parts.append(parse(raw, path))
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


class _Bounded(io.RawIOBase):
    """A stream that may give only so many bytes; where it has more, reading raises a `UserError`.

    Args:
        stream: where they come from.
        path: the file, for the error.
    """

    def __init__(self, stream: Any, path: Path) -> None:
        self._stream, self._path, self._left = stream, path, _MOST_BYTES

    def read(self, size: int = -1) -> bytes:
        """Read as the stream does."""
        content: bytes = self._stream.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(content)
        if self._left < 0:
            raise UserError(f"{self._path} holds more than {_MOST_BYTES} bytes: delete it and fetch it again")
        return content


def _contents(folder: Path, names: tuple[str, ...], dataset: Dataset) -> Iterator[tuple[Path, bytes]]:
    inside, archive = folder_of(folder), folder / ARCHIVE
    try:
        if (inside / names[0]).is_file():
            for name in names:
                yield inside / name, (inside / name).read_bytes()
            return
        verify_file(archive, dataset.digests[ARCHIVE])
        found = _unpack(archive, names)
        for name in names:
            if name not in found:
                raise UserError(f"{archive} lacks {name}; delete it and fetch it again")
            yield archive / name, found[name]
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        path = error.filename if isinstance(error, OSError) and error.filename else archive
        raise UserError(f"{path} cannot be read ({error}); delete it and fetch it again") from error


def _unpack(archive: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Return the contents of the files of these names in an archive, links left out."""
    found = {}
    # Once through, in the archive's order: a gzipped tar that is asked by name is decompressed each time.
    with gzip.open(archive) as stream, tarfile.open(fileobj=_Bounded(stream, archive), mode="r|") as members:
        for number, member in enumerate(members):
            if number >= _MOST_MEMBERS:
                raise UserError(f"{archive} holds more than {_MOST_MEMBERS} files: delete it and fetch it again")
            name = Path(member.name).name
            # A link may lead to itself or out of the archive.
            if name in names and member.isreg() and (content := members.extractfile(member)) is not None:
                found[name] = content.read()
    return found
