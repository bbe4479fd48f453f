"""Ctrl-C and SIGTERM as a wish to stop, so that the step at hand is finished and saved."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__ = ["StopRequest", "catch_stop_signals", "count_repeats_once"]

_repeats_within = 0.0
"""Seconds after a signal in which a second one says nothing new."""


@dataclass
class StopRequest:
    """Which signal asked to stop; 0 while none did."""

    signal_number: int = 0


def count_repeats_once(seconds: float) -> None:
    """Take signals that follow another within some seconds as the same wish, in this process from now on.

    For a process that gets a signal twice, from whoever stops its group and from its parent: the second one would end
    it while it saves.
    """
    global _repeats_within
    _repeats_within = seconds


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM in the yielded request instead of dying; a second one acts as usual.

    Outside the main thread, where Python cannot set handlers, nothing is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    noted: dict[int, float] = {}

    def note(number: int, _: FrameType | None) -> None:
        request.signal_number = number
        late = time.monotonic() - noted.setdefault(number, time.monotonic()) > _repeats_within
        if late or not _repeats_within:
            signal.signal(number, previous[signal.Signals(number)])
        if late:
            signal.raise_signal(number)

    for number in previous:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
