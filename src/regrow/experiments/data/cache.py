"""The user's cache folder: fetched files, and images decoded once."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from regrow.experiments.data.progress import tracker
from regrow.experiments.data.samples import TableSamples, image_column, open_parquet, parquet_rows
from regrow.experiments.errors import UserError

__all__ = ["Arrays", "atomic", "decoded", "folder", "identity", "mapped"]

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

    A cache that is damaged (every array carries a check sum) is made anew. One that cannot be written is done without.
    """
    path = folder() / "decoded" / f"{name}-{identity(files)}.npz"
    with suppress(OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error), np.load(path) as stored:
        return {key: stored[key] for key in stored.files}
    arrays = decode()
    with suppress(OSError), atomic(path) as temporary, temporary.open("wb") as stream:
        # `savez` would take these names for its own parameters' if it were given typed arrays by `**`.
        save: Callable[..., None] = np.savez
        save(stream, **arrays)
    return arrays


def mapped(name: str, files: Sequence[Path]) -> TableSamples:
    """The rows of parquet files, for access in any order without holding them in memory.

    Parquet is read by groups of rows; so they are copied once to an Arrow file in the cache, which is mapped.

    Raises:
        UserError: if a parquet file is damaged or has not the columns of labelled images, or cannot be copied.
    """
    import pyarrow

    path = folder() / "decoded" / f"{name}-{identity(files)}.arrow"
    if not _complete(path, parquet_rows(files)):
        try:
            _copy(files, path)
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(
                f"{files[0].parent} cannot be copied to {path} ({error}); fetch it again, or make room there"
            ) from error
    return TableSamples(files, partial(_open_mapped, path))


def _copy(files: Sequence[Path], path: Path) -> None:
    import pyarrow

    schema = pyarrow.schema([("image", pyarrow.struct([("bytes", pyarrow.binary())])), ("label", pyarrow.int64())])
    with (
        atomic(path) as temporary,
        tracker(f"copying {path.name}", parquet_rows(files)) as advance,
        pyarrow.ipc.new_file(str(temporary), schema) as writer,
    ):
        for table in map(open_parquet, files):
            column = image_column(table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=64, columns=[column, "label"]):
                content = batch.column(column).field("bytes")
                image = pyarrow.StructArray.from_arrays([content.cast(pyarrow.binary())], names=["bytes"])
                label = batch.column("label").cast(pyarrow.int64())
                writer.write_batch(pyarrow.record_batch([image, label], schema=schema))
                advance(len(batch))


def _open_mapped(path: Path) -> Any:
    import pyarrow

    return pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()


def _complete(path: Path, rows: int) -> bool:
    import pyarrow

    try:
        return len(_open_mapped(path)) == rows
    except (OSError, pyarrow.ArrowException):
        return False
