"""Writing files so that what existed before is never lost."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from regrow.experiments.errors import SaveError, UserError

__all__ = ["lock_folder", "remove_left_overs", "write_atomically", "write_text"]


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all: under another name first, flushed to disk, then renamed.

    Args:
        path: the file; its folder is made if it is missing.
        write: writes the contents to a binary file.

    Raises:
        SaveError: if it cannot be written; an older file of that name is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        with suppress(OSError):  # where the folder is none, there is nothing to delete
            temporary.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__  # of torch.save's RuntimeError
        reason = getattr(cause, "strerror", None) or str(error).splitlines()[0]
        raise SaveError(f"cannot write {path}: {reason}") from error


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder, made if it is missing, for this process alone.

    Raises:
        UserError: if another process holds it.
        SaveError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise SaveError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is at work in {folder}: wait for it, or take another --out") from None
        yield
    finally:
        os.close(descriptor)


def remove_left_overs(folder: Path) -> None:
    """Delete the unfinished files of a process that was killed while it wrote to the folder."""
    for left_over in folder.glob(".*.tmp"):
        left_over.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all (UTF-8); see `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))
