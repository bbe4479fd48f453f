"""Memory of this process as Linux counts it."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["forget_peak", "held", "peak"]

_PROCESS = Path("/proc/self")


def held() -> int:
    """Return the bytes of memory that this process holds.

    Raises:
        OSError: if the system does not tell.
    """
    pages = int((_PROCESS / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """Return the most bytes of memory that this process held since it began, or since `forget_peak`.

    Raises:
        OSError: if the system does not tell.
    """
    # `getrusage` would do, were it not that a new process starts with the peak of the one that made it.
    found = re.search(r"^VmHWM:\s+(\d+) kB$", (_PROCESS / "status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError("the system does not tell the peak memory of a process")
    return int(found[1]) * 1024


def forget_peak() -> None:
    """Let the peak begin at what is held now.

    Raises:
        OSError: if the system does not allow it.
    """
    (_PROCESS / "clear_refs").write_text("5")
