"""Getting files from elsewhere: public mirrors, and Debian's package."""

from __future__ import annotations

import http.client
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from regrow.experiments.data.progress import tracker

__all__ = ["APT_SECONDS", "CONNECT_SECONDS", "UnavailableError", "from_debian", "from_mirror"]

CONNECT_SECONDS = 5.0
APT_SECONDS = 600.0


class UnavailableError(Exception):
    """A place did not give the files; the message says why. Caught where the next place is tried."""


def from_mirror(address: str, files: tuple[str, ...], folder: Path) -> None:
    """Download `address` + each file's name into `folder`.

    Raises:
        UnavailableError: if one cannot be had.
    """
    for name in files:
        response = _open(address + name)
        length = response.headers.get("Content-Length")
        total = int(length) if length and length.isdigit() else None
        try:
            with response, (folder / name).open("wb") as stream, tracker(f"fetching {name}", total) as advance:
                while chunk := response.read(1 << 18):
                    stream.write(chunk)
                    advance(len(chunk))
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(f"the download of {name} broke off ({error})") from error
        if total is not None and (folder / name).stat().st_size != total:
            raise UnavailableError(f"the download of {name} broke off")


def _open(address: str) -> Any:
    """The response, or `UnavailableError` after a few seconds.

    In a thread, as a name server that does not answer keeps `getaddrinfo` for longer than any time-out given.
    """
    answers: queue.Queue[Any] = queue.Queue()

    def work() -> None:
        try:
            answers.put(urllib.request.urlopen(address, timeout=CONNECT_SECONDS))
        except (OSError, ValueError, http.client.HTTPException) as error:
            answers.put(error)

    threading.Thread(target=work, daemon=True).start()
    with suppress(queue.Empty):
        answer = answers.get(timeout=2 * CONNECT_SECONDS)
        if not isinstance(answer, Exception):
            return answer
        reason = answer.reason if isinstance(answer, urllib.error.URLError) else answer
        raise UnavailableError(f"no answer ({reason})") from answer
    raise UnavailableError(f"no answer in {2 * CONNECT_SECONDS:.0f} seconds")


def from_debian(package: str, system: tuple[str, ...], files: tuple[str, ...], folder: Path) -> None:
    """Download a Debian package, unpack it without installing it, and move its `files` into `folder`.

    Args:
        package: its name.
        system: the folders into which it would install them.
        files: their names.
        folder: where they go.

    Raises:
        UnavailableError: if there is no apt, or it does not give the package.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise UnavailableError("there is no apt on this system")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        try:
            _run(["apt-get", "download", package], scratch)
        except UnavailableError:
            if os.geteuid() != 0:
                raise
            _run(["apt-get", "update"], scratch)  # a fresh container has no package lists
            _run(["apt-get", "download", package], scratch)
        for archive in Path(scratch).glob("*.deb"):
            _run(["dpkg-deb", "-x", str(archive), scratch], scratch)
        for name in files:
            unpacked = [Path(scratch) / place.lstrip("/") / name for place in system]
            found = [path for path in unpacked if path.is_file()]
            if not found:
                raise UnavailableError(f"the package does not hold {name}")
            found[0].replace(folder / name)


def _run(command: list[str], folder: str) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=APT_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{' '.join(command[:2])} failed ({error})") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or ["no reason given"]
        raise UnavailableError(f"{' '.join(command[:2])} failed ({lines[0]})")
