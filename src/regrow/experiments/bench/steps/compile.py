"""Dense training by `torch.compile`, within a bounded time."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import torch

from regrow.experiments.bench.steps.training import Batches, Training, dense_training, make_step
from regrow.experiments.train.config import TrainConfig

__all__ = ["CompileError", "compile_training"]


def compile_training(
    training: Training, config: TrainConfig, batches: Batches, seconds: float, *, bfloat16: bool = False
) -> Training:
    """Return a compiled copy of a dense training, which has taken its first steps.

    Args:
        training: what to copy.
        config: its settings.
        batches: what it trains on.
        seconds: how long compilation may take.
        bfloat16: whether under autocast to bfloat16.

    Raises:
        CompileError: if it does not compile in that time.
    """
    if threading.current_thread() is not threading.main_thread():
        raise CompileError("compilation can be bounded in the main thread only")
    copy = dense_training(config, deepcopy(training.model), batches)
    try:
        with _alarm(seconds):
            compiled = torch.compile(copy.model)
            copy = replace(copy, step=make_step(compiled, copy.optimizer, batches, bfloat16=bfloat16))
            copy.step()
            copy.step()
    except Exception as error:  # whatever the compiler or the code that it makes raises
        torch._dynamo.reset()
        if _Alarm.rang_in(error):
            raise CompileError(f"torch.compile was not done after {seconds:g} s") from None
        reason = " ".join(str(error).split())[:160]
        raise CompileError(f"torch.compile fails: {type(error).__name__}: {reason}") from error
    return copy


class CompileError(Exception):
    """A network does not compile here; the message says why."""


class _Alarm(Exception):  # noqa: N818 - no error, but the end of what was allowed
    @staticmethod
    def rang_in(error: BaseException | None) -> bool:
        while error is not None:
            if isinstance(error, _Alarm):
                return True
            error = error.__cause__ or error.__context__
        return False


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _Alarm

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
