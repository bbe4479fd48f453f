"""The errors that the command line shows as one line, and what each means."""

from __future__ import annotations

__all__ = ["DivergedError", "SaveError", "StoppedError", "UserError", "WrongResultError"]


class UserError(Exception):
    """A mistake that the user can mend: shown as one line without a traceback, exit status 2.

    The message says what is wrong and what to do about it.
    """


class SaveError(Exception):
    """A file could not be written: the disk is full, or the folder is not writable. Nothing was replaced."""


class DivergedError(Exception):
    """The loss is no longer a finite number."""


class WrongResultError(Exception):
    """A sparse network or kernel computes something else than its reference, so nothing is timed."""


class StoppedError(Exception):
    """A signal stopped the run; it is saved.

    Args:
        message: where the run stands.
        signal_number: the signal.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)  # both, so that it can be sent between processes
        self.message = message
        self.signal_number = signal_number

    def __str__(self) -> str:
        return self.message
