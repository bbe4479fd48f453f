"""Writing files so that what existed before is never lost."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["LEFT_OVER", "replace_file"]

LEFT_OVER = r"\..+\.regrow-[0-9a-f]{16}\.tmp"
"""What the name of an unfinished file matches, which a process that was killed left behind."""


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all: under another name first, flushed to disk, then renamed.

    Args:
        path: the file; its folder exists.
        write: writes the contents to a binary file, which can be read and sought as well.

    Raises:
        OSError: if it cannot be written; an older file of that name is as it was.
    """
    # A name that nobody can foresee, and that must not be there: else a link of that name would be followed.
    temporary = path.with_name(f".{path.name}.regrow-{secrets.token_hex(8)}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o666), "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # where the folder is none, there is nothing to delete
            temporary.unlink(missing_ok=True)
        raise
