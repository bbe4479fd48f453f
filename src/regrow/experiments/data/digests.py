"""Digests of files and of decompressed contents."""

from __future__ import annotations

import hashlib
from pathlib import Path

from regrow.experiments.errors import UserError

__all__ = ["digest", "verify"]


def digest(content: bytes, like: str = "0" * 64) -> str:
    """The hexadecimal digest of `content`: MD5 if `like` has 32 digits, else SHA-256.

    >>> digest(b"")[:8], digest(b"", like="0" * 32)[:8]
    ('e3b0c442', 'd41d8cd9')
    """
    algorithm = hashlib.md5 if len(like) == 32 else hashlib.sha256
    return algorithm(content, usedforsecurity=False).hexdigest()


def verify(content: bytes, expected: str, path: Path) -> None:
    """Compare the digest of a file's decompressed bytes with the published one.

    Raises:
        UserError: if it differs; names the file and both digests.
    """
    found = digest(content, like=expected)
    if found != expected:
        raise UserError(
            f"{path} is damaged or another file: its contents have the digest {found}, expected {expected}; "
            "delete it and fetch it again, or point --data at a good copy"
        )
