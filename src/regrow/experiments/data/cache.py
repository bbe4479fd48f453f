"""The user's cache folder: fetched files, and images decoded once."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
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
from regrow.experiments.files import SEAL_BYTES, seal, seal_is_good
from regrow.experiments.terminal import say

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


def mapped(name: str, files: Sequence[Path]) -> TableSamples:
    """The rows of parquet files, for access in any order without holding them in memory.

    Parquet is read by groups of rows; so they are copied once to an Arrow file in the cache, which is mapped. All of
    it is compared with its digest first: Arrow trusts the offsets in it. A damaged one is made anew.

    Raises:
        UserError: if a parquet file is damaged or has not the columns of labelled images, or cannot be copied.
    """
    import pyarrow

    path = folder() / "decoded" / f"{name}-{identity(files)}.arrow"
    if not _verified(path):
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
    with atomic(path) as temporary:
        with (
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
        with temporary.open("r+b") as stream:
            seal(stream)


def _open_mapped(path: Path) -> Any:
    import pyarrow

    source = pyarrow.memory_map(str(path))
    return pyarrow.ipc.open_file(source.read_buffer(source.size() - SEAL_BYTES)).read_all()


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
