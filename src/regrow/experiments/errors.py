"""The errors that the command line shows as one line, and what each means."""

from __future__ import annotations

__all__ = [
    "DivergedError",
    "LostError",
    "RankError",
    "SaveError",
    "StoppedError",
    "ToldError",
    "UserError",
    "WrongResultError",
]


class UserError(Exception):
    """A mistake that the user can mend: shown as one line without a traceback, exit status 2.

    The message says what is wrong and what to do about it.
    """


class SaveError(Exception):
    """A file could not be written: the disk is full, or the folder is not writable. Nothing was replaced."""


class RankError(UserError):
    """A mistake that one process of a run has met, and the first has not; the message names its rank."""


class ToldError(Exception):
    """Another process of the run has met the user's mistake and says so: exit status 2 without a word."""


class LostError(Exception):
    """Another process of the run has ended, or does not answer."""


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
