"""Writing files so that what existed before is never lost, and reading them so that what was damaged is noticed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from regrow.experiments.errors import SaveError, UserError
from regrow.files.atomic import LEFT_OVER, replace_file

__all__ = ["SEAL_BYTES", "lock_folder", "remove_left_overs", "seal", "seal_is_good", "write_atomically", "write_text"]

SEAL_BYTES = hashlib.sha256().digest_size
"""Bytes that `seal` adds at the end of a file."""

_LEFT_OVER = re.compile(LEFT_OVER)
_held: set[int] = set()
"""Descriptors of the folders that this process holds."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all: under another name first, flushed to disk, then renamed.

    Args:
        path: the file; its folder is made if it is missing.
        write: writes the contents to a binary file, which can be read and sought as well.

    Raises:
        SaveError: if it cannot be written; an older file of that name is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__  # of torch.save's RuntimeError
        reason = getattr(cause, "strerror", None) or str(error).splitlines()[0]
        raise SaveError(f"cannot write {path}: {reason}") from error


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone. If it is missing it is made, and goes again if nothing comes to lie in it.

    Raises:
        UserError: if another process holds it.
        SaveError: if it cannot be made.
    """
    try:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        descriptor = _open_locked(folder)
    except BlockingIOError:
        raise UserError(f"another process is at work in {folder}: wait for it, or take another --out") from None
    except OSError as error:
        raise SaveError(f"cannot write to {folder}: {error.strerror}") from error
    _held.add(descriptor)
    try:
        yield
    finally:
        with suppress(OSError):  # the first that is not empty
            for place in made:
                place.rmdir()
        _held.discard(descriptor)
        os.close(descriptor)


def remove_left_overs(folder: Path) -> None:
    """Delete the unfinished files of a process that was killed while it wrote to the folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _LEFT_OVER.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all (UTF-8); see `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))


def seal(file: BinaryIO) -> None:
    """Add the SHA-256 of all that a file holds to its end.

    Args:
        file: open for reading and writing.
    """
    file.flush()
    file.seek(0)
    found = _digest(file)
    file.seek(0, os.SEEK_END)
    file.write(found)


def seal_is_good(file: BinaryIO, advance: Callable[[int], None] = lambda _: None) -> bool:
    """Return whether a file is, to the last bit, what it was when `seal` was called; afterwards it stands at its start.

    Args:
        file: open for reading.
        advance: told of bytes that are done.

    Example:
        >>> import io
        >>> file = io.BytesIO(b"content")
        >>> seal(file)
        >>> seal_is_good(file), seal_is_good(io.BytesIO(file.getvalue()[1:]))
        (True, False)
    """
    length = file.seek(0, os.SEEK_END) - SEAL_BYTES
    if length < 0:
        return False
    file.seek(0)
    good = _digest(file, length, advance) == file.read(SEAL_BYTES)
    file.seek(0)
    return good


def _digest(file: BinaryIO, length: int | None = None, advance: Callable[[int], None] = lambda _: None) -> bytes:
    found = hashlib.sha256()
    while length is None or length > 0:
        piece = file.read(1 << 20 if length is None else min(length, 1 << 20))
        if not piece:
            break
        found.update(piece)
        advance(len(piece))
        length = None if length is None else length - len(piece)
    return found.digest()


def _open_locked(folder: Path) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        except FileNotFoundError:
            pass  # whoever held it took it away: make it anew
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _let_go() -> None:
    """Close, in a copy of this process, what only the original holds: it may outlive it."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
