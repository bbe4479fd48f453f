"""Many runs, several at a time, each in its own folder: finished ones are kept, and a failed one stops no other."""

from __future__ import annotations

import gc
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread

import torch
from rich.console import Console
from rich.progress import Progress

from regrow.experiments import processes
from regrow.experiments.errors import DivergedError, LostError, SaveError, StoppedError, ToldError, UserError
from regrow.experiments.files import write_text
from regrow.experiments.train.config import TrainConfig
from regrow.experiments.train.interrupt import catch_stop_signals, count_repeats_once
from regrow.experiments.train.loop import MakeRun, resume_config, train
from regrow.experiments.train.result import Result
from regrow.experiments.train.run import Run

__all__ = ["ERROR_FILE", "Failure", "run_all"]

ERROR_FILE = "error.txt"
"""File in the folder of a run that holds the traceback of what went wrong."""

# A signal to all processes of a study reaches a worker twice: the second time its parent hands it on.
_REPEATS_WITHIN_SECONDS = 10.0
_KILLED = "its process was killed; is there enough memory for so many runs at a time? (--jobs)"


@dataclass(frozen=True)
class Failure:
    """A run that did not get to its end.

    Attributes:
        message: what went wrong, in one line.
        is_mistake: whether it is the user's mistake.
    """

    message: str
    is_mistake: bool = False


Outcome = Result | Failure
_Work = tuple[Path, TrainConfig]


def run_all(
    runs: Mapping[Path, TrainConfig],
    *,
    data_root: Path | None = None,
    jobs: int | None = None,
    console: Console | None = None,
    make_run: MakeRun = Run,
) -> list[Result | Failure]:
    """Train what is missing of some runs and return how each ended, in the order of the runs.

    Args:
        runs: for each folder the settings of its run.
        data_root: folder with the data sets; None looks in the usual places.
        jobs: runs at a time, each a process with its share of the cores; 1 runs them in this process, one after the
            other, on all cores. None takes as many as there are cores, one on CUDA.
        console: where to say which run fails, and to show progress if it is a terminal.
        make_run: makes a run from its settings and `data_root`.

    Raises:
        UserError: if a folder holds a run with other settings.
        SaveError: if a file cannot be written.
        StoppedError: if SIGINT or SIGTERM came; runs are saved.
    """
    for folder, config in runs.items():
        _settings(folder, config)  # refused before anything is trained
    missing = [folder for folder in runs if not (folder / "result.json").exists()]
    # Where torchrun has started several processes, all of them train one run, then the next.
    jobs = 1 if processes.size() > 1 else jobs or _default_jobs(runs, len(missing))
    console = console if processes.is_first() else None
    outcomes: dict[Path, Outcome] = {}
    with Progress(console=console, disable=console is None or not console.is_terminal) as progress:
        task = progress.add_task(next(iter(runs.values())).preset, total=len(runs))

        def ended(folder: Path, outcome: Outcome) -> None:
            outcomes[folder] = outcome
            if console is not None and isinstance(outcome, Failure):
                console.print(f"{folder}: failed: {outcome.message}", markup=False, highlight=False, soft_wrap=True)
            progress.advance(task)

        if jobs == 1:
            for folder, config in runs.items():
                ended(folder, _run_one(config, folder, data_root, make_run))
        else:
            _run_in_processes(list(runs.items()), jobs, data_root, make_run, ended)
    return [outcomes[folder] for folder in runs]


def _default_jobs(runs: Mapping[Path, TrainConfig], missing: int) -> int:
    """Return as many as there are cores and runs to train; 1 where they would share a CUDA device."""
    devices = {config.device for config in runs.values()}
    if any(name.startswith("cuda") or (name == "auto" and torch.cuda.is_available()) for name in devices):
        return 1
    return max(1, min(_cores(), missing))


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_in_processes(
    runs: list[_Work], jobs: int, data_root: Path | None, make_run: MakeRun, ended: Callable[[Path, Outcome], None]
) -> None:
    """Run all in processes, each of which has one run at a time: so it is known which run a process dies of."""
    threads = max(1, _cores() // jobs)
    waiting, idle = deque(runs), list[ProcessPoolExecutor]()
    running: dict[Future[Outcome], tuple[Path, ProcessPoolExecutor]] = {}
    with catch_stop_signals() as stop:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    folder, config = waiting.popleft()
                    worker = idle.pop() if idle else _new_worker(threads)
                    running[worker.submit(_run_one, config, folder, data_root, make_run)] = folder, worker
                done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                if stop.signal_number:
                    raise StoppedError("stopped: finished runs are kept, unfinished ones saved", stop.signal_number)
                for future in done:
                    folder, worker = running.pop(future)
                    ended(folder, _outcome(future))
                    if isinstance(future.exception(), BrokenProcessPool):
                        worker.shutdown()
                    else:
                        idle.append(worker)
        except BaseException:
            for process in active_children():
                process.terminate()  # SIGTERM: the run at hand is saved
            raise
        finally:
            for worker in (*idle, *(worker for _, worker in running.values())):
                worker.shutdown(cancel_futures=True)


def _new_worker(threads: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_start_worker, initargs=(threads,))


def _outcome(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        return Failure(_KILLED)


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it too, and stops its workers
    count_repeats_once(_REPEATS_WITHIN_SECONDS)
    Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # the parent was killed, and nobody waits for the run


def _run_one(config: TrainConfig, folder: Path, data_root: Path | None, make_run: MakeRun) -> Outcome:
    """Train a run, or go on with it; what goes wrong with this run alone is returned."""
    if not (folder / "result.json").exists():
        # Models and optimizers with hooks refer to themselves: the run before, its data too, would stay in memory.
        gc.collect()
    try:
        resume = processes.from_first((folder / "config.yaml").exists)
        result = train(_settings(folder, config), folder, resume=resume, data_root=data_root, make_run=make_run)
    except (StoppedError, SaveError, LostError):
        raise
    except (ToldError, UserError) as error:
        return Failure(str(error), is_mistake=True)
    except DivergedError as error:
        return Failure(str(error))
    except Exception as error:  # whatever a network, a recipe or the machine raises must not stop the other runs
        if processes.is_first():
            write_text(folder / ERROR_FILE, traceback.format_exc())
        first = (str(error).splitlines() or [""])[0]
        return Failure(f"{type(error).__name__}: {first} ({folder / ERROR_FILE})")
    if processes.is_first():
        (folder / ERROR_FILE).unlink(missing_ok=True)
    return result


def _settings(folder: Path, config: TrainConfig) -> TrainConfig:
    """Return the settings with which a run starts or goes on.

    Raises:
        UserError: if the folder holds a run with other settings.
    """
    if not (folder / "config.yaml").exists():
        return config
    return resume_config(config, config.model_dump(), folder)
