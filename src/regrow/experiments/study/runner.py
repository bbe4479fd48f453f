"""Many runs, each in a folder of its own, one after the other or several at a time; finished ones are kept."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread

import torch
from rich.console import Console
from rich.progress import Progress

from regrow.experiments.errors import StoppedError
from regrow.experiments.train.config import TrainConfig
from regrow.experiments.train.interrupt import StopRequest, catch_stop_signals
from regrow.experiments.train.loop import MakeRun, resume_config, train
from regrow.experiments.train.result import Result
from regrow.experiments.train.run import Run

__all__ = ["run_all"]

_stopped: list[StoppedError] = []
"""In a worker process: why it starts no more runs."""


def run_all(
    runs: Mapping[Path, TrainConfig],
    *,
    data_root: Path | None = None,
    jobs: int = 1,
    console: Console | None = None,
    make_run: MakeRun = Run,
) -> list[Result]:
    """Train what is missing of some runs and return all results, in the order of the runs.

    Args:
        runs: for each folder the settings of its run.
        data_root: folder with the data sets; None looks in the usual places.
        jobs: runs at a time; each takes its share of the cores.
        console: where to show progress; nothing is shown unless it is a terminal.
        make_run: makes a run from its settings and `data_root`.

    Raises:
        UserError: if a setting does not fit, or a folder holds a run with other settings.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    results: list[Result | None] = [None] * len(runs)
    with Progress(console=console, disable=console is None or not console.is_terminal) as progress:
        task = progress.add_task(next(iter(runs.values())).preset, total=len(runs))
        if jobs == 1:
            for number, (folder, config) in enumerate(runs.items()):
                results[number] = _run_one(config, folder, data_root, make_run)
                progress.advance(task)
        else:
            spawn = get_context("spawn")
            with (
                catch_stop_signals() as stop,
                ProcessPoolExecutor(jobs, spawn, initializer=_start_worker, initargs=(threads,)) as pool,
            ):
                numbers = {
                    pool.submit(_run_in_worker, config, folder, data_root, make_run): number
                    for number, (folder, config) in enumerate(runs.items())
                }
                try:
                    for done in _as_completed(set(numbers), stop):
                        results[numbers[done]] = done.result()
                        progress.advance(task)
                except BaseException:
                    for worker in active_children():
                        worker.terminate()  # SIGTERM: the run at hand is saved
                    pool.shutdown(cancel_futures=True)
                    raise
    return [result for result in results if result is not None]


def _as_completed(waiting: set[Future[Result]], stop: StopRequest) -> Iterator[Future[Result]]:
    while waiting:
        done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
        if stop.signal_number:
            raise StoppedError("stopped: finished runs are kept, unfinished ones saved", stop.signal_number)
        yield from done


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it too, and stops its workers
    Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # the parent was killed, and nobody waits for the run


def _run_in_worker(config: TrainConfig, folder: Path, data_root: Path | None, make_run: MakeRun) -> Result:
    if _stopped:
        raise _stopped[0]
    try:
        return _run_one(config, folder, data_root, make_run)
    except StoppedError as stopped:
        _stopped.append(stopped)  # the pool may have handed this process its next run already
        raise


def _run_one(config: TrainConfig, folder: Path, data_root: Path | None, make_run: MakeRun) -> Result:
    resume = (folder / "config.yaml").exists()
    if resume:
        config = resume_config(config, config.model_dump(), folder)
    return train(config, folder, resume=resume, data_root=data_root, make_run=make_run)
