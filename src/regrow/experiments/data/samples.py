"""Sets of encoded images, read one at a time: a folder for each class, or Hugging Face's parquet."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from regrow.experiments.errors import UserError

__all__ = [
    "EVALUATION",
    "SUFFIXES",
    "CopiedSamples",
    "FolderSamples",
    "Samples",
    "TableSamples",
    "decoded",
    "encoded_rows",
    "image_column",
    "open_parquet",
    "parquet_files",
    "parquet_rows",
    "read_tables",
]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")
EVALUATION = ("validation", "val", "test")
"""Names of the split to evaluate on, in the order tried: ImageNet's public test set has no labels."""


class Samples(Protocol):
    """Encoded images with their labels.

    Attributes:
        labels: int64, one an image.
        files: what they are read from; a cache is good as long as these stay as they are.
    """

    labels: NDArray[np.int64]
    files: Sequence[Path]

    def encoded(self, index: int) -> bytes:
        """The image's file as it is stored: JPEG, PNG, ..."""
        ...

    def where(self, index: int) -> str:
        """How an error names the image."""
        ...


class FolderSamples:
    """The images in `folder`/<class>/; the classes number as their names sort.

    Raises:
        UserError: if there are no images.
    """

    def __init__(self, folder: Path) -> None:
        self.classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        found = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in SUFFIXES
        ]
        if not found:
            raise UserError(f"{folder} has no folders with images ({', '.join(SUFFIXES)}); one a class is needed")
        self.files: Sequence[Path] = [path for path, _ in found]
        self.labels = np.array([label for _, label in found], dtype=np.int64)

    def encoded(self, index: int) -> bytes:
        """The bytes of the image's file."""
        return self.files[index].read_bytes()

    def where(self, index: int) -> str:
        """The image's path."""
        return str(self.files[index])


class TableSamples:
    """The rows of parquet files with a column `img` or `image` of {bytes, path}, and a column `label`.

    Args:
        files: the parquet files, for errors and as the identity of the set.
        open_table: gives the `pyarrow.Table`. Each process opens its own, so that workers need not be sent it.
    """

    def __init__(self, files: Sequence[Path], open_table: Callable[[], Any]) -> None:
        self.files = files
        self._open_table = open_table
        self.labels = self._table.column("label").to_numpy().astype(np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return TableSamples, (self.files, self._open_table)

    @cached_property
    def _table(self) -> Any:
        return self._open_table()

    @cached_property
    def _images(self) -> Any:
        return self._table.column(image_column(self._table.column_names))

    def encoded(self, index: int) -> bytes:
        """The bytes of the image in that row."""
        return _present(self._images[index].as_py()["bytes"], index, self.files)

    def where(self, index: int) -> str:
        """The row's number and the first file."""
        return _row(index, self.files)


class CopiedSamples:
    """Images that stand one after the other in a file.

    Args:
        files: what they were copied from.
        path: the file.
        ends: (N + 1,), int64: where each image begins, and the end of the last.
        labels: (N,), int64.
        checksums: (N,), uint32: the CRC-32 of each image.
    """

    def __init__(
        self,
        files: Sequence[Path],
        path: Path,
        ends: NDArray[np.int64],
        labels: NDArray[np.int64],
        checksums: NDArray[np.uint32],
    ) -> None:
        self.files, self._path = files, path
        self._ends, self.labels, self._checksums = ends, labels, checksums

    def encoded(self, index: int) -> bytes:
        """The bytes of the image.

        Raises:
            UserError: if they are not what was copied; the file is deleted then.
        """
        start, end = self._ends[index : index + 2].tolist()
        try:
            with self._path.open("rb") as stream:
                stream.seek(start)
                content = stream.read(end - start)
        except OSError as error:
            raise UserError(
                f"the cache {self._path} cannot be read ({error}): it is made anew at the next start"
            ) from error
        if zlib.crc32(content) != self._checksums[index]:
            self._path.unlink(missing_ok=True)
            raise UserError(
                f"the cache {self._path} is damaged and was deleted: it is made anew; start again, or --resume"
            )
        return content

    def where(self, index: int) -> str:
        """The row's number and the first file."""
        return _row(index, self.files)


def encoded_rows(files: Sequence[Path]) -> Iterator[tuple[bytes, int]]:
    """The images of parquet files as they are stored, with their labels, one at a time.

    Raises:
        UserError: if a file is damaged, has not the columns of labelled images, or holds paths in the place of images.
    """
    import pyarrow

    number = 0
    for path in files:
        table = open_parquet(path)
        column = image_column(table.schema_arrow.names)
        try:
            for batch in table.iter_batches(batch_size=64, columns=[column, "label"]):
                contents = batch.column(column).field("bytes").to_pylist()
                for content, label in zip(contents, batch.column("label").to_pylist(), strict=True):
                    yield _present(content, number, files), -1 if label is None else int(label)
                    number += 1
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{path} is damaged ({error}); fetch it again") from error


def _present(content: bytes | None, row: int, files: Sequence[Path]) -> bytes:
    if content is None:
        raise UserError(f"{_row(row, files)} holds a path and not the image; fetch the set with its images")
    return content


def _row(index: int, files: Sequence[Path]) -> str:
    return f"row {index} of {files[0]} (of {len(files)})"


def image_column(columns: Sequence[str]) -> str | None:
    """The name of the column with the images, if the table is one of labelled images.

    >>> image_column(["img", "label"]), image_column(["text"])
    ('img', None)
    """
    names = [name for name in ("img", "image") if name in columns and "label" in columns]
    return names[0] if names else None


def parquet_files(folder: Path, splits: Sequence[str]) -> list[Path]:
    """The files `<split>-*.parquet` in `folder` or its `data` subfolder, of the first split that has any."""
    for split in splits:
        for place in (folder, folder / "data"):
            files = sorted(path for path in place.glob(f"{split}-*.parquet") if path.is_file())
            if files:
                return files
    return []


def read_tables(files: Sequence[Path]) -> Any:
    """The parquet files as one `pyarrow.Table` in memory.

    Raises:
        UserError: if a file is damaged or has not the columns of labelled images.
    """
    import pyarrow

    return pyarrow.concat_tables([_read_table(path) for path in files])


def parquet_rows(files: Sequence[Path]) -> int:
    """How many rows the files promise.

    Raises:
        UserError: if a file is damaged or has not the columns of labelled images.
    """
    return sum(int(open_parquet(path).metadata.num_rows) for path in files)


def open_parquet(path: Path) -> Any:
    """The `pyarrow.parquet.ParquetFile`, its columns checked.

    Raises:
        UserError: if it is damaged or has not the columns of labelled images.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        # Not as a memory map: a file that shrinks would then end the process.
        opened = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not a readable parquet file ({error}); fetch it again") from error
    if image_column(opened.schema_arrow.names) is None:
        raise UserError(
            f"{path} has the columns {', '.join(opened.schema_arrow.names)}; needed: img or image, and label"
        )
    return opened


def _read_table(path: Path) -> Any:
    import pyarrow

    opened = open_parquet(path)
    try:
        return opened.read(columns=[image_column(opened.schema_arrow.names), "label"])
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from error


@contextmanager
def decoded(samples: Samples, index: int, mode: str) -> Iterator[Any]:
    """The image as a `PIL.Image.Image` of that mode ("L" or "RGB"), for use in the block.

    Its pixels are decoded when first used, so that a JPEG can be asked for a smaller version before that.

    Raises:
        UserError: if the file is unreadable or no image, on entry or in the block.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(samples.encoded(index))) as image:
            yield image if image.mode == mode else image.convert(mode)
    except UserError:
        raise
    except Exception as error:  # a damaged image may raise nearly anything
        raise UserError(f"{samples.where(index)} cannot be decoded ({error}); replace or remove it") from error
