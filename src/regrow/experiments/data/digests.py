"""Digests of files and of decompressed contents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regrow.experiments.errors import UserError

__all__ = ["digest", "verify", "verify_file"]


def digest(content: bytes, like: str = "0" * 64) -> str:
    """The hexadecimal digest of `content`: MD5 if `like` has 32 digits, else SHA-256.

    >>> digest(b"")[:8], digest(b"", like="0" * 32)[:8]
    ('e3b0c442', 'd41d8cd9')
    """
    found: str = _algorithm(like)(content, usedforsecurity=False).hexdigest()
    return found


def verify(content: bytes, expected: str, path: Path) -> None:
    """Compare the digest of a file's decompressed bytes with the published one.

    Raises:
        UserError: if it differs; names the file and both digests.
    """
    _require(digest(content, like=expected), expected, f"{path} is damaged or another file: its contents have")


def verify_file(path: Path, expected: str) -> None:
    """Compare the digest of a file as it is with the published one, a piece at a time.

    Raises:
        UserError: if it differs; names the file and both digests.
    """
    found = _algorithm(expected)(usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            found.update(piece)
    _require(found.hexdigest(), expected, f"{path} is damaged or another archive, so it is not unpacked: it has")


def _algorithm(like: str) -> Callable[..., Any]:
    return hashlib.md5 if len(like) == 32 else hashlib.sha256


def _require(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise UserError(
            f"{what} the digest {found}, expected {expected}; "
            "delete it and fetch it again, or point --data at a good copy"
        )
