"""The processes that `torchrun` starts for one run: each has its share of the batches, the first writes and prints.

Everything here asks PyTorch's default group; where there is none, this process is the only one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from regrow.experiments.errors import LostError, RankError, ToldError, UserError
from regrow.experiments.files import write_text

__all__ = [
    "add_up",
    "from_all",
    "from_first",
    "in_all",
    "is_first",
    "joined",
    "largest",
    "mark",
    "rank",
    "size",
    "was_restarted",
]

T = TypeVar("T")

_MARK = ".torchrun"


def size() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0; before it has joined the others what `torchrun` says."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return int(os.environ["RANK"]) if _is_launched() else 0


def is_first() -> bool:
    """Return whether this process writes and prints."""
    return rank() == 0


@contextmanager
def joined(seconds: float) -> Iterator[None]:
    """Join the other processes if `torchrun` has started this one, and it has not joined yet.

    Args:
        seconds: how long to wait for another process before giving up.

    Raises:
        LostError: in the block, if another process has ended or does not answer.
    """
    if not _is_launched() or distributed.is_initialized():
        with _losses_told(seconds):
            yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    timeout = timedelta(seconds=seconds)
    from torch.distributed.distributed_c10d import PrefixStore  # not in every build of PyTorch
    from torch.distributed.rendezvous import rendezvous

    store, number, count = next(rendezvous("env://", timeout=timeout))
    # In PyTorch 2.13 the store of `torchrun` outlives the processes, with the addresses of those that have ended.
    store = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    distributed.init_process_group(backend, store=store, rank=number, world_size=count, timeout=timeout)
    try:
        with _losses_told(seconds):
            yield
            distributed.barrier()  # nobody leaves while another is still to hear from it
    finally:
        distributed.destroy_process_group()


def from_first(function: Callable[[], T]) -> T:
    """Call a function in the first process, and return in all what it returned there.

    Raises:
        UserError: in the first process, as the function raised it.
        ToldError: in the others then.
    """
    if size() == 1:
        return function()
    answer: list[Any] = [None, None]
    error: UserError | None = None
    if is_first():
        try:
            answer[0] = function()
        except UserError as raised:
            error, answer[1] = raised, str(raised)
    distributed.broadcast_object_list(answer, src=0)
    if error is not None:
        raise error
    if answer[1] is not None:
        raise ToldError(answer[1])
    result: T = answer[0]
    return result


def in_all(function: Callable[[], T]) -> T:
    """Call a function in every process; if one meets a mistake of the user's, all stop and one says so.

    Raises:
        UserError: in the first process, as the function raised it.
        RankError: in another, if the first has met none.
        ToldError: in the others then.
    """
    if size() == 1:
        return function()
    result, error = None, None
    try:
        result = function()
    except UserError as raised:
        error = raised
    messages = from_all(None if error is None else str(error))
    wrong = [number for number, message in enumerate(messages) if message is not None]
    if not wrong:
        assert result is not None
        return result
    if wrong[0] != rank():
        raise ToldError(messages[wrong[0]])
    assert error is not None
    raise error if is_first() else RankError(f"rank {rank()}: {error}") from error


def from_all(value: T) -> list[T]:
    """Return what each process gives, in their order."""
    values: list[Any] = [value] * size()
    if size() > 1:
        distributed.all_gather_object(values, value)
    return values


def largest(*numbers: int) -> tuple[int, ...]:
    """Return the largest of each number over all processes."""
    if size() == 1:
        return numbers
    found = torch.tensor(numbers)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return tuple(found.tolist())


def add_up(numbers: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, a new one."""
    total = numbers.clone()
    if size() > 1:
        distributed.all_reduce(total)
    return total


def mark(folder: Path) -> None:
    """Note in the folder of a run which `torchrun` has started it."""
    if _is_launched():
        write_text(folder / _MARK, _launcher())


def was_restarted(folder: Path) -> bool:
    """Return whether `torchrun` has started this process anew, after a failure of the run in a folder."""
    if not _is_launched() or not int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        return False
    path = folder / _MARK
    return path.exists() and path.read_text(encoding="utf-8") == _launcher()


def _is_launched() -> bool:
    return distributed.is_available() and distributed.is_torchelastic_launched()


def _launcher() -> str:
    """Return what tells one `torchrun` from another: its own name for the job may be "none"."""
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {os.environ['MASTER_ADDR']} {os.getppid()}\n"


@contextmanager
def _losses_told(seconds: float) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not _is_of_the_group(error):
            raise
        reason = str(error).splitlines()[0].split(". ")[0]
        raise LostError(
            f"rank {rank()}: another process of this run has ended, or has not answered for {seconds:g} s "
            f"(--set wait_seconds): {reason}"
        ) from error


def _is_of_the_group(error: RuntimeError) -> bool:
    """Return whether it comes from what sends and receives."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)
