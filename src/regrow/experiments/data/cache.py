"""The user's cache folder: fetched files, and images decoded once."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from regrow.experiments.data.progress import tracker
from regrow.experiments.data.samples import CopiedSamples, encoded_rows, parquet_rows
from regrow.experiments.errors import UserError
from regrow.experiments.files import SEAL_BYTES, seal, seal_is_good
from regrow.experiments.terminal import say

__all__ = ["Arrays", "atomic", "copied", "decoded", "folder", "identity"]

Arrays = dict[str, NDArray[Any]]


def folder() -> Path:
    """Where this package keeps data: a folder a data set, and `decoded`."""
    return Path(platformdirs.user_cache_path("regrow")) / "data"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path to write to, beside `path`; it becomes `path` if the block ends well, and goes if it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def identity(files: Sequence[Path]) -> str:
    """A key that changes when a file moves, or changes in size or time of modification."""
    facts = [(str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:20]


def decoded(name: str, files: Sequence[Path], decode: Callable[[], Arrays]) -> Arrays:
    """What `decode()` gives, from the cache if `files` are as they were; kept there otherwise.

    A cache that is damaged (the file ends with its digest) is made anew, with a line on the standard error. One that
    cannot be written is done without.
    """
    path = folder() / "decoded" / f"{name}-{identity(files)}.npz"
    if _verified(path):
        with suppress(OSError), np.load(io.BytesIO(path.read_bytes()[:-SEAL_BYTES])) as stored:
            return {key: stored[key] for key in stored.files}
    arrays = decode()
    with suppress(OSError), atomic(path) as temporary, temporary.open("w+b") as stream:
        # `savez` would take these names for its own parameters' if it were given typed arrays by `**`.
        save: Callable[..., None] = np.savez
        save(stream, **arrays)
        seal(stream)
    return arrays


def copied(name: str, files: Sequence[Path]) -> CopiedSamples:
    """The rows of parquet files, for access in any order without holding them in memory.

    Parquet is read by groups of rows; so the images are copied once to a file in the cache, one after the other. Where
    each stands, its label and its checksum are kept beside as `decoded` keeps arrays. To read all images at every
    start would take minutes for ImageNet: each is compared with its checksum whenever it is read.

    Raises:
        UserError: if a parquet file is damaged or has not the columns of labelled images, or cannot be copied.
    """
    path = folder() / "decoded" / f"{name}-{identity(files)}.images"

    def copy() -> Arrays:
        try:
            return _copy(files, path)
        except OSError as error:
            raise UserError(
                f"{files[0].parent} cannot be copied to {path} ({error}); fetch it again, or make room there"
            ) from error

    table = decoded(name, files, copy)
    size = path.stat().st_size if path.is_file() else None
    if size != table["ends"][-1]:
        if size is not None:
            say(f"the cache {path} is damaged: it is made anew")
        table = copy()
    return CopiedSamples(files, path, table["ends"], table["labels"], table["checksums"])


def _copy(files: Sequence[Path], path: Path) -> Arrays:
    """Copy images; return where each ends, their labels and checksums."""
    ends, labels, checksums = [0], [], []
    with (
        tracker(f"copying {path.name}", parquet_rows(files)) as advance,
        atomic(path) as temporary,
        temporary.open("wb") as stream,
    ):
        for content, label in encoded_rows(files):
            stream.write(content)
            ends.append(ends[-1] + len(content))
            labels.append(label)
            checksums.append(zlib.crc32(content))
            advance(1)
    return {
        "ends": np.array(ends, np.int64),
        "labels": np.array(labels, np.int64),
        "checksums": np.array(checksums, np.uint32),
    }


def _verified(path: Path) -> bool:
    """Return whether a cache is there and as it was written; one that is not is worth a line."""
    try:
        with path.open("rb") as stream, tracker(f"verifying {path.name}", path.stat().st_size) as advance:
            good = seal_is_good(stream, advance)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        good = False
    if not good:
        say(f"the cache {path} is damaged: it is made anew")
    return good
