"""The entry point of the `regrow` command: says what is missing when the experiments extra is not installed."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    _open_standard_streams()
    from regrow.experiments.errors import SaveError

    sys.stdout = _Output(sys.stdout)
    try:
        from regrow.experiments.cli import app
    except ModuleNotFoundError as error:
        missing = (error.name or "regrow").partition(".")[0]
        if missing == "regrow":
            raise
        sys.stderr.write(f"regrow: the command line needs {missing}: pip install 'regrow[experiments]'\n")
        sys.exit(2)
    try:
        app()
    except SaveError as error:
        sys.stderr.write(f"regrow: {error}\n")
        sys.exit(1)


class _Output:
    """The standard output, whose failures are errors of their own.

    Args:
        stream: where it goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, as the stream does.

        Raises:
            SaveError: if it cannot be written.
        """
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def flush(self) -> None:
        """Write out what is held back, as the stream does.

        Raises:
            SaveError: if it cannot be written.
        """
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> Exception:
        from regrow.experiments.errors import SaveError

        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)  # the interpreter writes what is left when it ends, and would fail again
        os.close(null)
        reason = getattr(error, "strerror", None) or str(error)
        return SaveError(f"cannot write to the standard output: {reason}")


def _open_standard_streams() -> None:
    """Open what was closed when the process started: else the next file that is opened would take its place."""
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass  # not writable, so that writing to it fails as to a closed one
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for as long as the process
