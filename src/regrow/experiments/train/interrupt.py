"""Ctrl-C and SIGTERM as a wish to stop, so that the step at hand is finished and saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__ = ["StopRequest", "catch_stop_signals"]


@dataclass
class StopRequest:
    """Which signal asked to stop; 0 while none did."""

    signal_number: int = 0


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

    def note(number: int, _: FrameType | None) -> None:
        request.signal_number = number
        signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
